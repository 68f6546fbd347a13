"""Incremental aggregation, update by update. The adapters are built on it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flcore_kernels import backend as backend_named

from flcore.aggregation.admission_limits import MAX_UPDATES, AggregationSettings
from flcore.aggregation.array_combiner import ModelTotal, combine_arrays
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.aggregation.optimizer_state import require_stateless
from flcore.aggregation.output_template import OutputTemplate, allocate
from flcore.aggregation.reference_model import ReferenceModel, passthrough_reference
from flcore.errors import AggregationError, JobError, QuorumError, SpecError, TensorMismatch, UpdateError, WeightError
from flcore.model.arrays import AnyArrays, converters_for
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Rule, Sum, needs_base
from flcore.rules.named import resolve_rule


class IncrementalAggregator:
    """Takes updates one by one, holds `group` of them, folds these in one pass and drops them.

    An update that is refused leaves no trace. `add` raises its error, or, if its values are checked only when the group
    is folded, `pop_rejected` returns it later.

    Memory: the held updates, and a total of 4, 8 or 16 bytes per parameter, which is kept for the next round.

    Not thread-safe.

    Args:
        rule: A key of `RULES` (default: "mean"), or a rule.
        accumulate: "exact" (default), "float64" or "float32".
        backend: "auto" (default), "cpu", "cuda" or "cuda:1".
        group: How many updates are folded at once. Default: 1. With None, and for a rule that is not a sum, all updates
            of a round are held.
        max_abs: The largest magnitude of an element. Default: no bound but that of the dtype.
        spec: The tensors of the model. Default: None, those of the first update that counts.
        double_buffer: For float32 sums, take another 4 bytes per parameter, which is faster (see `RunningMean`).
        average_bytes: Average unsigned bytes, instead of keeping them unchanged. Default: False.

    Raises:
        JobError: A setting is invalid.
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
        double_buffer: bool = False,
        average_bytes: bool = False,
    ) -> None:
        require_settings(rule, accumulate, group, max_abs)
        self._settings = AggregationSettings(
            resolve_rule(rule), accumulate, backend_named(backend), average_bytes, max_abs
        )
        self.group, self._may_double = group, double_buffer and accumulate == "float32"
        self._fixed_spec = spec
        self._combiner = None if spec is None else Combiner(spec, self._settings)
        self._total: ModelTotal | None = None
        self._pending: list[ArrayContribution] = []
        self._rejected: list[UpdateError] = []
        self._template: OutputTemplate | None = None
        self._is_partially_folded = False

    @property
    def spec(self) -> ModelSpec | None:
        """The model's tensors; None before the first update."""
        return None if self._combiner is None else self._combiner.spec

    def begin_round(self, model: AnyArrays) -> None:
        """Begin a round with the model that was sent. Updates must have its passthrough elements and unsigned bytes.

        Copies only the tensors that have such elements. If the rule needs the model as its base, as clipping does, its
        arrays are read in place until the next round.
        """
        self.clear()
        self._fixed_spec = ModelSpec.of(model)
        combiner = Combiner(self._fixed_spec, self._settings)
        buffers = combiner.buffer_reader.buffers(model, "the model")
        if needs_base(self._settings.rule):
            base = ReferenceModel(combiner.spec, buffers, combiner.device, updates_are_deltas=False)
            self._combiner, self._total = Combiner(combiner.spec, self._settings, base), None
        else:
            self._use_combiner(combiner, buffers)

    def check(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Raise `UpdateError` unless an update is admissible. Reads all of it."""
        combiner, contribution = self._admit(arrays, weight, client)
        combiner.check_arrays([contribution])

    def add(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Take an update, or raise `UpdateError` and change nothing."""
        self._require_consistent()
        is_sum = isinstance(self._settings.rule, Sum)
        if any(update.client == client for update in self._pending):
            if not is_sum:
                raise UpdateError("it has an update in this round already", client=client)
            self._fold()  # errors name clients, so a name is held once at most
        combiner, update = self._admit(arrays, weight, client)
        if self._fixed_spec is None and not self._count:
            combiner.check_arrays([update])  # the first update defines the model, so it is checked at once
            self._use_combiner(combiner, update.buffers)
        self._pending.append(update)
        if self.group is not None and is_sum and len(self._pending) >= self.group:
            try:
                self._fold()
            except BaseException:
                self._pending = [held for held in self._pending if held is not update]
                raise
            for number, error in enumerate(self._rejected):
                if error.client == client:
                    raise self._rejected.pop(number)

    def finish(self, out: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, Any]:
        """Return the combination of all updates, and begin again with the same tensors.

        Args:
            out: The arrays to write the result into. Default: None, new arrays of the first update's libraries.

        Returns:
            The combined model.

        Raises:
            QuorumError: There is no update.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the result, or an error has left an update half folded.
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
            self._reset()  # another attempt with these updates would fail in the same way
            raise
        template, self._fixed_spec = self._template, combiner.spec
        self._reset()
        if out is not None:
            return dict(out)
        named = _named_arrays(combiner.spec, results)
        return named if template is None else template.restore(named)

    def pop_rejected(self) -> list[UpdateError]:
        """Return the errors of updates that `add` took and that were refused later, since the last call."""
        taken, self._rejected = self._rejected, []
        return taken

    def clear(self) -> None:
        """Drop all updates. The model's tensors stay if they were given, or if a round has had a result."""
        self._rejected = []
        self._reset()

    @property
    def _count(self) -> int:
        """How many updates have been taken: folded or held."""
        return len(self._pending) + (len(self._total.coefficients) if self._total is not None else 0)

    def _reset(self) -> None:
        self._pending, self._template, self._is_partially_folded = [], None, False
        if self._fixed_spec != self.spec:
            self._combiner = self._total = None
        elif self._total is not None:
            self._total.clear()

    def _require_consistent(self) -> None:
        """Raise `AggregationError` if an exception, such as Ctrl-C, has interrupted a fold."""
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
        """Use a combiner. Later updates must have the passthrough elements and unsigned bytes of these tensors."""
        reference_model, before = passthrough_reference(combiner.spec, buffers, combiner.device), self._combiner
        if (
            reference_model is None
            and before is not None
            and before.reference_model is None
            and before.spec == combiner.spec
        ):
            return  # keep the last round's total: its memory is reused
        self._combiner, self._total = Combiner(combiner.spec, self._settings, reference_model), None

    def _combine_pending(self, combiner: Combiner, results: Buffers) -> None:
        """Combine the held updates, when nothing is folded yet. Rejects those that are at fault."""
        while self._pending:
            try:
                if self._settings.max_abs < math.inf or combiner.reference_model is not None:
                    combiner.check_arrays(self._pending)
                combine_arrays(combiner, self._pending, results)
            except UpdateError as error:
                self._reject(error)
            else:
                self._update_template(combiner)
                return
        raise QuorumError("there is nothing to aggregate: no update could be counted")

    def _fold(self) -> None:
        """Fold the held updates. Rejects those that are at fault before anything is folded."""
        while self._pending and self._combiner is not None:
            total = self._total = self._total or ModelTotal(self._combiner, double_buffer=self._may_double)
            try:
                total.prepare(self._pending)
            except UpdateError as error:
                self._reject(error)
                continue
            self._is_partially_folded = True  # until the whole group is in
            total.fold(self._pending)
            self._update_template(self._combiner)
            self._pending = []
            self._is_partially_folded = False

    def _update_template(self, combiner: Combiner) -> None:
        """Record the libraries, nesting and shared arrays of the updates that count."""
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
        self._rejected.append(error.with_traceback(None))  # its frames reference the arrays
        if not self._count:
            self._reset()


def require_settings(rule: str | Rule, accumulate: str, group: int | None, max_abs: float) -> None:
    """Raise `JobError` for invalid settings."""
    chosen = resolve_rule(rule)
    AggregationSettings(chosen, accumulate, backend_named(), max_abs=max_abs)
    require_stateless(chosen, "in an adapter, whose framework has server optimizers of its own")
    if group is not None and group < 1:
        raise JobError(f"group: expected a whole number of at least 1, got {group!r}")


def _named_arrays(spec: ModelSpec, buffers: Buffers) -> dict[str, npt.NDArray[Any]]:
    """Return buffers as named arrays, in the order of the spec."""
    named = {
        span.tensor.name: values.view(DTYPES[segment.dtype])
        for segment, tensors in zip(spec.segments, buffers, strict=True)
        for span, values in zip(segment.spans, tensors, strict=True)
    }
    return {tensor.name: named[tensor.name] for tensor in spec.tensors}
