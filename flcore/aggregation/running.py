"""A running combination, for whoever is handed one update after the other: what the adapters are built on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from flcore_kernels import EXACT_RANGE
from flcore_kernels import backend as backend_named

from flcore.aggregation.columns import Averaged, Column, Folded, require_sound
from flcore.aggregation.combination import Combination, Likeness, Read
from flcore.aggregation.gather import Buffers, Gather, allocated
from flcore.aggregation.rules import rule_named
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_sum
from flcore.errors import (
    AggregationError,
    JobError,
    OutOfBounds,
    QuorumError,
    SpecError,
    TensorMismatch,
    UpdateError,
    WeightError,
)
from flcore.model.arrays import AnyArrays, kinds_of
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec

WEIGHTS = {"float32": (2.0**-24, 2.0**40)}
"""What a weight may be beside 0, where a float32 total of all would not hold what exact sums take."""

MOST_UPDATES = 65_535
"""As many terms as an exact sum takes."""


class Running:
    """Takes updates as they come, holds them until `group` are there, folds these in one pass and lets them go.

    Updates have the tensors of `spec`, or of the first one that counts. One that is refused leaves no trace: by `add`,
    or, if its values turn out to be unsound once others have come, later (see `take_refused`). Beside the updates held,
    there is a total of 4, 8 or 16 bytes per parameter, whose memory is kept for the next round; `may_double` allows
    another 4 for float32, which is then faster. One thread at a time.
    """

    def __init__(
        self,
        *,
        rule: str = "mean",
        accumulate: str = "exact",
        backend: str = "auto",
        group: int = 1,
        max_abs: float = math.inf,
        spec: ModelSpec | None = None,
        may_double: bool = False,
    ) -> None:
        require_settings(rule, accumulate, group, max_abs)
        self._rule, self._accumulate, self._device = rule_named(rule), accumulate, backend_named(backend)
        self.group, self._max_abs, self._may_double = group, max_abs, may_double
        self._settled = spec
        self._combination = None if spec is None else self._of(spec)
        self._likeness: Likeness | None = None
        self._kinds: list[AnyArrays] = []
        self._columns: list[Column] = []
        self._held: list[Read] = []
        self._refused: list[UpdateError] = []
        self._coefficients: list[float] = []
        self._is_torn = False

    @property
    def spec(self) -> ModelSpec | None:
        """What the model is, once that is known."""
        return None if self._combination is None else self._combination.gather.spec

    def check(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Raise `UpdateError` unless an update can be counted in. Reads all of it."""
        combination, read = self._read(arrays, weight, client)
        self._require_sound(combination, [read])

    def add(self, arrays: AnyArrays, weight: Any, client: str) -> None:
        """Count an update in, or raise `UpdateError` and leave everything as it was."""
        self._require_whole()
        if any(read.client == client for read in self._held):
            self._fold()  # so that a name says whose update is refused
        combination, read = self._read(arrays, weight, client)
        if self._settled is None and not self._held and not self._coefficients:
            self._require_sound(combination, [read])  # whoever says what the model is has to be sound
        self._combination = combination
        self._held.append(read)
        self._kinds.append(kinds_of(arrays) if self._likeness is None else {})
        if len(self._held) >= self.group:
            self._fold()
            for number, error in enumerate(self._refused):
                if error.client == client:
                    raise self._refused.pop(number)

    def finish(self, out: Mapping[str, npt.NDArray[Any]] | None = None) -> dict[str, Any]:
        """Return the combination of all updates and begin anew, with the same tensors; `out`: where to put it.

        The result is of the first update's kinds, or in the arrays of `out`. Raises `QuorumError` where there is no
        update, `WeightError` where all weights are zero, and `AggregationError` where a dtype cannot hold the result.
        """
        self._require_whole()
        combination = self._combination
        if combination is None or not (self._held or self._coefficients):
            raise QuorumError("there is nothing to aggregate: no update was accepted")
        spec = combination.gather.spec
        targets = None if out is None else combination.gather.targets(out)
        results = None if self._coefficients else self._at_once(combination, targets)
        if results is None:
            self._fold()
            require_sum(self._coefficients)
            given = [None] * len(spec.segments) if targets is None else targets
            results = [column.finish(each) for column, each in zip(self._columns, given, strict=True)]
        likeness, self._settled = self._likeness, spec
        self._begin_anew()
        named = _named(spec, results) if out is None else dict(out)
        return named if out is not None or likeness is None else likeness.give(named)

    def take_refused(self) -> list[UpdateError]:
        """Return why updates that were added do not count after all, those since the last call."""
        taken, self._refused = self._refused, []
        return taken

    def clear(self) -> None:
        """Let all updates go; what the model is stays, if there was a result of it."""
        self._refused = []
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._held, self._kinds, self._coefficients, self._likeness, self._is_torn = [], [], [], None, False
        for column in self._columns:
            column.clear()
        if self._settled != self.spec:
            self._combination, self._columns = None, []

    def _require_whole(self) -> None:
        """Raise `AggregationError` if some of an update is folded and some is not."""
        if self._is_torn:
            raise AggregationError("an error in the middle of a fold left this round half folded: it has no result")

    def _at_once(self, combination: Combination, targets: Buffers | None) -> Buffers | None:
        """Combine what is held, if that is all there is, in one pass, without those that turn out to be unsound.

        Returns None where a sum overflows, which says nothing of whose fault it is.
        """
        gather = combination.gather
        results = gather.buffers(allocated(gather.spec), "") if targets is None else targets
        while self._held:
            try:
                if self._max_abs < math.inf:
                    self._require_sound(combination, self._held)
                combination.at_once(self._held, results)
            except UpdateError as error:
                self._drop(error)
            except AggregationError:
                return None
            else:
                self._see()
                return results
        raise QuorumError("there is nothing to aggregate: no update could be counted")

    def _require_sound(self, combination: Combination, reads: list[Read]) -> None:
        """Raise `NonFinite` or `OutOfBounds` unless all values of these updates may be folded."""
        coefficients, clients = [read.coefficient for read in reads], [read.client for read in reads]
        for index, segment in enumerate(combination.gather.spec.segments):
            parts = [read.buffers[index] for read in reads]
            require_sound(self._device, segment, parts, coefficients, clients, self._max_abs)

    def _fold(self) -> None:
        """Fold what is held but for those that cannot be; unless all of it goes well, nothing has changed."""
        while self._held:
            clients = [read.client for read in self._held]
            try:
                for index, column in enumerate(self._columns_of()):
                    column.prepare(*self._parts(index), clients)
            except (UpdateError, AggregationError) as error:
                self._exclude(error)
                continue
            except BaseException:
                self._held, self._kinds = self._held[:-1], self._kinds[:-1]
                raise
            self._is_torn = True  # unless all of it gets in
            for column in self._columns:
                column.commit()
            self._is_torn = False
            self._see()
            self._coefficients += [read.coefficient for read in self._held]
            self._held, self._kinds = [], []

    def _exclude(self, error: UpdateError | AggregationError) -> None:
        """Let go of the update that an error is about; where it names none, find out by folding one after the other."""
        if isinstance(error, UpdateError) and any(read.client == error.client for read in self._held):
            self._drop(error)
        elif len(self._held) == 1:
            client = self._held[0].client
            self._drop(OutOfBounds(f"it cannot be combined with the updates before it: {error}", client=client))
        else:
            held, kinds = self._held, self._kinds
            for number in range(len(held)):
                self._held, self._kinds = held[number : number + 1], kinds[number : number + 1]
                self._fold()

    def _see(self) -> None:
        """Take note of what the updates that count look like."""
        if self._combination is not None:
            self._likeness = self._likeness or Likeness(self._combination.gather.spec)
            for read, kinds in zip(self._held, self._kinds, strict=True):
                self._likeness.see(read, kinds)

    def _parts(self, index: int) -> tuple[list[list[npt.NDArray[Any]]], list[float]]:
        return [read.buffers[index] for read in self._held], [read.coefficient for read in self._held]

    def _drop(self, error: UpdateError) -> None:
        """Let go of the update that an error names, or raise the error if there is none."""
        kept = [number for number, read in enumerate(self._held) if read.client != error.client]
        if len(kept) == len(self._held):
            raise error
        self._held, self._kinds = [self._held[n] for n in kept], [self._kinds[n] for n in kept]
        error.__context__ = None
        self._refused.append(error.with_traceback(None))  # whose frames would keep the arrays
        if not self._held and not self._coefficients:
            self._begin_anew()

    def _read(self, arrays: AnyArrays, weight: Any, client: str) -> tuple[Combination, Read]:
        try:
            combination = self._combination or self._of(ModelSpec.of(arrays))
            read = combination.read(arrays, weight, client)
        except SpecError as error:
            raise TensorMismatch(str(error), client=client) from None
        low, high = WEIGHTS.get(self._accumulate, EXACT_RANGE)
        if read.coefficient and not low <= read.coefficient <= high:
            raise WeightError(
                f"{self._accumulate} sums take weights that are 0 or between {low:g} and {high:g}, not {weight!r}",
                client=client,
            )
        if len(self._coefficients) + len(self._held) >= MOST_UPDATES:
            raise UpdateError(f"a round takes {MOST_UPDATES} updates, and has them", client=client)
        return combination, read

    def _columns_of(self) -> list[Column]:
        if not self._columns and self._combination is not None:
            for segment in self._combination.gather.spec.segments:
                accumulate = accumulator_of(segment.dtype, self._accumulate)
                if self._may_double and accumulate == segment.dtype == "float32":
                    self._columns.append(Averaged(segment, self._device, self._max_abs))
                else:
                    self._columns.append(Folded(segment, accumulate, self._device, self._max_abs))
        return self._columns

    def _of(self, spec: ModelSpec) -> Combination:
        return Combination(Gather(spec, self._device), self._rule, self._accumulate, self._device)


def require_settings(rule: str, accumulate: str, group: int, max_abs: float) -> None:
    """Raise `JobError` for settings that no round could have."""
    rule_named(rule)
    require_accumulator(accumulate)
    if group < 1:
        raise JobError(f"group: expected a whole number of at least 1, got {group!r}")
    if not max_abs > 0:
        raise JobError(f"max_abs: expected a number above 0, got {max_abs!r}")


def _named(spec: ModelSpec, buffers: Buffers) -> dict[str, npt.NDArray[Any]]:
    """Return buffers as the tensors that they are, in the order of the spec."""
    named = {
        span.tensor.name: values.view(DTYPES[segment.dtype])
        for segment, tensors in zip(spec.segments, buffers, strict=True)
        for span, values in zip(segment.spans, tensors, strict=True)
    }
    return {tensor.name: named[tensor.name] for tensor in spec.tensors}
