"""A running combination, for whoever is handed one update after the other: what the adapters are built on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flcore_kernels import backend as backend_named

from flcore.aggregation.combiner import Combiner
from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.aggregation.in_memory import Totals, combine_arrays
from flcore.aggregation.known import constants_of
from flcore.aggregation.limits import MOST_UPDATES, Settings
from flcore.aggregation.results import Likeness, allocated
from flcore.aggregation.rules import Rule, Sum, rule_named
from flcore.errors import AggregationError, JobError, QuorumError, SpecError, TensorMismatch, UpdateError, WeightError
from flcore.model.arrays import AnyArrays, kinds_of
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


class Running:
    """Takes updates as they come, holds them until `group` are there, folds these in one pass and lets them go.

    Updates have the tensors of `spec`, or of the first one that counts. One that is refused leaves no trace: by `add`,
    or, if its values turn out to be unsound once others have come, later (see `take_refused`). Beside the updates held,
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
        self._settings = Settings(rule_named(rule), accumulate, backend_named(backend), average_bytes, max_abs)
        self.group, self._may_double = group, may_double and accumulate == "float32"
        self._settled = spec
        self._combiner = None if spec is None else Combiner(spec, self._settings)
        self._totals: Totals | None = None
        self._held: list[ArrayContribution] = []
        self._refused: list[UpdateError] = []
        self._likeness: Likeness | None = None
        self._is_torn = False

    @property
    def spec(self) -> ModelSpec | None:
        """What the model is, once that is known."""
        return None if self._combiner is None else self._combiner.spec

    def expect(self, model: AnyArrays) -> None:
        """Begin a round of updates of a model: what is not averaged (see `flcore.aggregate`) must stay what it is here.

        Arrays are copied only where they have such elements.
        """
        self.clear()
        self._settled = ModelSpec.of(model)
        combiner = Combiner(self._settled, self._settings)
        self._settle(combiner, combiner.gather.buffers(model, "the model"))

    def check(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Raise `UpdateError` unless an update can be counted in. Reads all of it."""
        combiner, contribution = self._read(arrays, weight, client)
        combiner.admit([contribution])

    def add(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Count an update in, or raise `UpdateError` and leave everything as it was."""
        self._require_whole()
        is_sum = isinstance(self._settings.rule, Sum)
        if any(held.client == client for held in self._held):
            if not is_sum:
                raise UpdateError("it has an update in this round already", client=client)
            self._fold()  # so that a name says whose update is refused
        combiner, update = self._read(arrays, weight, client)
        if self._settled is None and not self._count:
            combiner.admit([update])  # the first update says what the model is, so it is checked at once
            self._settle(combiner, update.buffers)
        self._held.append(update)
        if self.group is not None and is_sum and len(self._held) >= self.group:
            try:
                self._fold()
            except BaseException:
                self._held = [each for each in self._held if each is not update]
                raise
            for number, error in enumerate(self._refused):
                if error.client == client:
                    raise self._refused.pop(number)

    def finish(self, out: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, Any]:
        """Return the combination of all updates and begin anew, with the same tensors; `out`: where to put it.

        The result is of the first update's kinds, or in the arrays of `out`. Raises `QuorumError` where there is no
        update, `WeightError` where all weights are zero, and `AggregationError` where a rule's result does not fit.
        """
        self._require_whole()
        combiner = self._combiner
        if combiner is None or not self._count:
            raise QuorumError("there is nothing to aggregate: no update was accepted")
        gather = combiner.gather
        results = gather.buffers(allocated(combiner.spec), "") if out is None else gather.targets(out)
        try:
            if self._totals is not None and self._totals.coefficients:
                self._fold()
                self._totals.finish(results, may_replace=out is None)
            else:
                self._combine_held(combiner, results)
        except (AggregationError, WeightError):
            self._begin_anew()  # no other result is to come of these updates
            raise
        likeness, self._settled = self._likeness, combiner.spec
        self._begin_anew()
        if out is not None:
            return dict(out)
        named = _named(combiner.spec, results)
        return named if likeness is None else likeness.give(named)

    def take_refused(self) -> list[UpdateError]:
        """Return why updates that were added do not count after all, those since the last call."""
        taken, self._refused = self._refused, []
        return taken

    def clear(self) -> None:
        """Let all updates go; what the model is stays, if there was a result of it."""
        self._refused = []
        self._begin_anew()

    @property
    def _count(self) -> int:
        """How many updates count, or may: those that are folded, and those that are held."""
        return len(self._held) + (len(self._totals.coefficients) if self._totals is not None else 0)

    def _begin_anew(self) -> None:
        self._held, self._likeness, self._is_torn = [], None, False
        if self._settled != self.spec:
            self._combiner = self._totals = None
        elif self._totals is not None:
            self._totals.clear()

    def _require_whole(self) -> None:
        """Raise `AggregationError` if some of an update is folded and some is not."""
        if self._is_torn:
            raise AggregationError("an error in the middle of a fold left this round half folded: it has no result")

    def _read(self, arrays: AnyArrays, weight: Any, client: str) -> tuple[Combiner, ArrayContribution]:
        try:
            combiner = self._combiner or Combiner(ModelSpec.of(arrays), self._settings)
            accepted = combiner.admit_weight(weight, client)
            buffers = combiner.gather.buffers(arrays, client)
        except SpecError as error:
            raise TensorMismatch(str(error), client=client) from None
        if self._count >= MOST_UPDATES:
            raise UpdateError(f"a round takes {MOST_UPDATES} updates, and has them", client=client)
        kinds = kinds_of(arrays) if self._likeness is None else None
        return combiner, ArrayContribution(client, accepted, combiner.spec, buffers, kinds)

    def _settle(self, combiner: Combiner, buffers: Buffers) -> None:
        """Take a combiner for a model; later updates must keep what is not averaged of these tensors."""
        known, before = constants_of(combiner.spec, buffers, combiner.device), self._combiner
        if known is None and before is not None and before.known is None and before.spec == combiner.spec:
            return  # the memory of the last round's totals serves again
        self._combiner, self._totals = Combiner(combiner.spec, self._settings, known), None

    def _combine_held(self, combiner: Combiner, results: Buffers) -> None:
        """Combine what is held, which is all there is, without those that turn out to be unsound."""
        while self._held:
            try:
                if self._settings.max_abs < math.inf or combiner.known is not None:
                    combiner.admit(self._held)
                combine_arrays(combiner, self._held, results)
            except UpdateError as error:
                self._drop(error)
            else:
                self._see(combiner)
                return
        raise QuorumError("there is nothing to aggregate: no update could be counted")

    def _fold(self) -> None:
        """Fold what is held but for those that may not be; unless all of it goes well, nothing has changed."""
        while self._held and self._combiner is not None:
            totals = self._totals = self._totals or Totals(self._combiner, may_double=self._may_double)
            try:
                totals.prepare(self._held)
            except UpdateError as error:
                self._drop(error)
                continue
            self._is_torn = True  # unless all of it gets in
            totals.fold(self._held)
            self._see(self._combiner)
            self._held = []
            self._is_torn = False

    def _see(self, combiner: Combiner) -> None:
        """Take note of what the updates that count look like."""
        self._likeness = self._likeness or Likeness(combiner.spec)
        for held in self._held:
            self._likeness.see(held)

    def _drop(self, error: UpdateError) -> None:
        """Let go of the update that an error names, or raise the error if there is none."""
        kept = [held for held in self._held if held.client != error.client]
        if len(kept) == len(self._held):
            raise error
        self._held = kept
        error.__context__ = None
        self._refused.append(error.with_traceback(None))  # whose frames would keep the arrays
        if not self._count:
            self._begin_anew()


def require_settings(rule: str | Rule, accumulate: str, group: int | None, max_abs: float) -> None:
    """Raise `JobError` for settings that no round could have."""
    Settings(rule_named(rule), accumulate, backend_named(), max_abs=max_abs)
    if group is not None and group < 1:
        raise JobError(f"group: expected a whole number of at least 1, got {group!r}")


def _named(spec: ModelSpec, buffers: Buffers) -> dict[str, npt.NDArray[Any]]:
    """Return buffers as the tensors that they are, in the order of the spec."""
    named = {
        span.tensor.name: values.view(DTYPES[segment.dtype])
        for segment, tensors in zip(spec.segments, buffers, strict=True)
        for span, values in zip(segment.spans, tensors, strict=True)
    }
    return {tensor.name: named[tensor.name] for tensor in spec.tensors}
