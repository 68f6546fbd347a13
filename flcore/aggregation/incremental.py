"""Incremental aggregation, one update after the other. The adapters are built on it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flcore_kernels import backend as backend_named

from flcore.aggregation.admission_limits import MAX_UPDATES, AggregationSettings
from flcore.aggregation.array_combiner import ModelTotal, combine_arrays
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.aggregation.output_template import OutputTemplate, allocate
from flcore.aggregation.reference_model import constants_reference
from flcore.aggregation.rules import Rule, Sum, resolve_rule
from flcore.errors import AggregationError, JobError, QuorumError, SpecError, TensorMismatch, UpdateError, WeightError
from flcore.model.arrays import AnyArrays, converters_for
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


class IncrementalAggregator:
    """Takes updates as they come, holds them until `group` are there, folds these in one pass and lets them go.

    Updates have the tensors of `spec`, or of the first one that counts. One that is refused leaves no trace: by `add`,
    or, if its values turn out to be unsound once others have come, later (see `pop_rejected`). Beside the updates held,
    there is a total of 4, 8 or 16 bytes per parameter, whose memory is kept for the next round; `may_double` allows
    another 4 for float32, which is then faster. Without a `group`, and for a rule that is no sum, all updates of a
    round are held. One thread at a time.
    """

    def __init__(
        self,
        *,
        rule: str | Rule = "mean",
        accumulate: str = "exact",
        backend: str = "auto",
        group: int | None = 1,
        max_abs: float = math.inf,
        spec: ModelSpec | None = None,
        may_double: bool = False,
        average_bytes: bool = False,
    ) -> None:
        require_settings(rule, accumulate, group, max_abs)
        self._settings = AggregationSettings(
            resolve_rule(rule), accumulate, backend_named(backend), average_bytes, max_abs
        )
        self.group, self._may_double = group, may_double and accumulate == "float32"
        self._fixed_spec = spec
        self._combiner = None if spec is None else Combiner(spec, self._settings)
        self._total: ModelTotal | None = None
        self._pending: list[ArrayContribution] = []
        self._rejected: list[UpdateError] = []
        self._template: OutputTemplate | None = None
        self._is_partially_folded = False

    @property
    def spec(self) -> ModelSpec | None:
        """What the model is, once that is known."""
        return None if self._combiner is None else self._combiner.spec

    def begin_round(self, model: AnyArrays) -> None:
        """Begin a round of updates of a model: what is not averaged (see `flcore.aggregate`) must stay what it is here.

        Arrays are copied only where they have such elements.
        """
        self.clear()
        self._fixed_spec = ModelSpec.of(model)
        combiner = Combiner(self._fixed_spec, self._settings)
        self._use_combiner(combiner, combiner.buffer_reader.buffers(model, "the model"))

    def check(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Raise `UpdateError` unless an update can be counted in. Reads all of it."""
        combiner, contribution = self._admit(arrays, weight, client)
        combiner.admit([contribution])

    def add(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Count an update in, or raise `UpdateError` and leave everything as it was."""
        self._require_consistent()
        is_sum = isinstance(self._settings.rule, Sum)
        if any(update.client == client for update in self._pending):
            if not is_sum:
                raise UpdateError("it has an update in this round already", client=client)
            self._fold()  # so that a name says whose update is refused
        combiner, update = self._admit(arrays, weight, client)
        if self._fixed_spec is None and not self._count:
            combiner.admit([update])  # the first update says what the model is, so it is checked at once
            self._use_combiner(combiner, update.buffers)
        self._pending.append(update)
        if self.group is not None and is_sum and len(self._pending) >= self.group:
            try:
                self._fold()
            except BaseException:
                self._pending = [each for each in self._pending if each is not update]
                raise
            for number, error in enumerate(self._rejected):
                if error.client == client:
                    raise self._rejected.pop(number)

    def finish(self, out: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, Any]:
        """Return the combination of all updates and begin anew, with the same tensors; `out`: where to put it.

        The result is of the first update's kinds, or in the arrays of `out`. Raises `QuorumError` where there is no
        update, `WeightError` where all weights are zero, and `AggregationError` where a rule's result does not fit.
        """
        self._require_consistent()
        combiner = self._combiner
        if combiner is None or not self._count:
            raise QuorumError("there is nothing to aggregate: no update was accepted")
        buffer_reader = combiner.buffer_reader
        results = (
            buffer_reader.buffers(allocate(combiner.spec), "") if out is None else buffer_reader.output_buffers(out)
        )
        try:
            if self._total is not None and self._total.coefficients:
                self._fold()
                self._total.finish(results, may_replace=out is None)
            else:
                self._combine_pending(combiner, results)
        except (AggregationError, WeightError):
            self._reset()  # no other result is to come of these updates
            raise
        template, self._fixed_spec = self._template, combiner.spec
        self._reset()
        if out is not None:
            return dict(out)
        named = _named_arrays(combiner.spec, results)
        return named if template is None else template.restore(named)

    def pop_rejected(self) -> list[UpdateError]:
        """Return why updates that were added do not count after all, those since the last call."""
        taken, self._rejected = self._rejected, []
        return taken

    def clear(self) -> None:
        """Let all updates go; what the model is stays, if there was a result of it."""
        self._rejected = []
        self._reset()

    @property
    def _count(self) -> int:
        """How many updates count, or may: those that are folded, and those that are held."""
        return len(self._pending) + (len(self._total.coefficients) if self._total is not None else 0)

    def _reset(self) -> None:
        self._pending, self._template, self._is_partially_folded = [], None, False
        if self._fixed_spec != self.spec:
            self._combiner = self._total = None
        elif self._total is not None:
            self._total.clear()

    def _require_consistent(self) -> None:
        """Raise `AggregationError` if some of an update is folded and some is not."""
        if self._is_partially_folded:
            raise AggregationError("an error in the middle of a fold left this round half folded: it has no result")

    def _admit(self, arrays: AnyArrays, weight: Any, client: str) -> tuple[Combiner, ArrayContribution]:
        try:
            combiner = self._combiner or Combiner(ModelSpec.of(arrays), self._settings)
            accepted = combiner.admit_weight(weight, client)
            buffers = combiner.buffer_reader.buffers(arrays, client)
        except SpecError as error:
            raise TensorMismatch(str(error), client=client) from None
        if self._count >= MAX_UPDATES:
            raise UpdateError(f"a round takes {MAX_UPDATES} updates, and has them", client=client)
        converters = converters_for(arrays) if self._template is None else None
        return combiner, ArrayContribution(client, accepted, combiner.spec, buffers, converters)

    def _use_combiner(self, combiner: Combiner, buffers: Buffers) -> None:
        """Take a combiner for a model; later updates must keep what is not averaged of these tensors."""
        reference_model, before = constants_reference(combiner.spec, buffers, combiner.device), self._combiner
        if (
            reference_model is None
            and before is not None
            and before.reference_model is None
            and before.spec == combiner.spec
        ):
            return  # the memory of the last round's totals serves again
        self._combiner, self._total = Combiner(combiner.spec, self._settings, reference_model), None

    def _combine_pending(self, combiner: Combiner, results: Buffers) -> None:
        """Combine what is held, which is all there is, without those that turn out to be unsound."""
        while self._pending:
            try:
                if self._settings.max_abs < math.inf or combiner.reference_model is not None:
                    combiner.admit(self._pending)
                combine_arrays(combiner, self._pending, results)
            except UpdateError as error:
                self._reject(error)
            else:
                self._update_template(combiner)
                return
        raise QuorumError("there is nothing to aggregate: no update could be counted")

    def _fold(self) -> None:
        """Fold what is held but for those that may not be; unless all of it goes well, nothing has changed."""
        while self._pending and self._combiner is not None:
            total = self._total = self._total or ModelTotal(self._combiner, may_double=self._may_double)
            try:
                total.prepare(self._pending)
            except UpdateError as error:
                self._reject(error)
                continue
            self._is_partially_folded = True  # unless all of it gets in
            total.fold(self._pending)
            self._update_template(self._combiner)
            self._pending = []
            self._is_partially_folded = False

    def _update_template(self, combiner: Combiner) -> None:
        """Take note of what the updates that count look like."""
        self._template = self._template or OutputTemplate(combiner.spec)
        for update in self._pending:
            self._template.add_update(update)

    def _reject(self, error: UpdateError) -> None:
        """Drop the update that an error names; raise the error if it names none."""
        kept = [update for update in self._pending if update.client != error.client]
        if len(kept) == len(self._pending):
            raise error
        self._pending = kept
        error.__context__ = None
        self._rejected.append(error.with_traceback(None))  # whose frames would keep the arrays
        if not self._count:
            self._reset()


def require_settings(rule: str | Rule, accumulate: str, group: int | None, max_abs: float) -> None:
    """Raise `JobError` for settings that no round could have."""
    AggregationSettings(resolve_rule(rule), accumulate, backend_named(), max_abs=max_abs)
    if group is not None and group < 1:
        raise JobError(f"group: expected a whole number of at least 1, got {group!r}")


def _named_arrays(spec: ModelSpec, buffers: Buffers) -> dict[str, npt.NDArray[Any]]:
    """Return buffers as the tensors that they are, in the order of the spec."""
    named = {
        span.tensor.name: values.view(DTYPES[segment.dtype])
        for segment, tensors in zip(spec.segments, buffers, strict=True)
        for span, values in zip(segment.spans, tensors, strict=True)
    }
    return {tensor.name: named[tensor.name] for tensor in spec.tensors}
