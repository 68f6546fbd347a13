"""Updates of one model, read where they are, looked at and folded: what `aggregate` and the adapters have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flcore_kernels import Backend, Total

from flcore.aggregation.gather import Buffers, Gather, address_of, blamed
from flcore.aggregation.rules import Rule
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_sum, require_weight
from flcore.model.arrays import AnyArrays, given
from flcore.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Read:
    """An update as the kernels take it; its buffers keep its memory alive."""

    buffers: Buffers
    coefficient: float
    client: str


class Combination:
    """What becomes of the updates of one model: a total that they are folded into, or their mean in one pass."""

    def __init__(self, gather: Gather, rule: Rule, accumulate: str, device: Backend) -> None:
        self.gather = gather
        self._rule, self._device = rule, device
        require_accumulator(accumulate)
        self._segments = [(seg, accumulator_of(seg.dtype, accumulate)) for seg in gather.spec.segments]
        self._strictest = "exact" if any(each == "exact" for _, each in self._segments) else accumulate
        self._totals: list[Total] = []
        self._coefficients: list[float] = []

    def read(self, arrays: AnyArrays, weight: Any, client: str) -> Read:
        """Return an update as it can be folded, or raise `WeightError`, `TensorMismatch` or `SpecError`."""
        coefficient = self._rule.coefficient(require_weight(weight, self._strictest, client))
        return Read(self.gather.buffers(arrays, client), coefficient, client)

    def at_once(self, reads: Sequence[Read], targets: Buffers, bases: Buffers | None = None) -> None:
        """Write the combination of all updates to `targets`, in one pass per dtype."""
        coefficients = [read.coefficient for read in reads]
        require_sum(coefficients)
        for index, (segment, accumulate) in enumerate(self._segments):
            with blamed(segment, [read.client for read in reads]):
                self._device.mean(
                    [read.buffers[index] for read in reads],
                    coefficients,
                    targets[index],
                    segment.dtype,
                    accumulate,
                    base=None if bases is None else bases[index],
                )

    def reserve(self) -> None:
        """Have totals of the model's size to fold into, if there are none yet."""
        self._totals = self._totals or [self._device.total(seg.elements, each) for seg, each in self._segments]

    def fold(self, reads: Sequence[Read]) -> None:
        """Add a group of updates to totals of the model's size, in one pass per dtype."""
        self.reserve()
        coefficients = [read.coefficient for read in reads]
        for index, (segment, _) in enumerate(self._segments):
            with blamed(segment, [read.client for read in reads]):
                self._device.fold(
                    self._totals[index], [read.buffers[index] for read in reads], coefficients, segment.dtype
                )
        self._coefficients += coefficients

    def finish(self, targets: Buffers, bases: Buffers | None = None) -> None:
        """Write the combination of all that was folded to `targets`, and begin anew."""
        require_sum(self._coefficients)
        for index, (segment, _) in enumerate(self._segments):
            with blamed(segment, []):
                base = None if bases is None else bases[index]
                self._device.finish(self._totals[index], targets[index], segment.dtype, base=base)
        self._totals, self._coefficients = [], []


class Likeness:
    """How results are given back: of the first update's kinds and nesting, with what all updates tie tied.

    Tensors are tied where they are one array in memory.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._kinds: AnyArrays | None = None
        self._tied: list[list[str]] = [[tensor.name for tensor in spec.tensors]]

    @property
    def is_new(self) -> bool:
        """Whether no update was seen yet."""
        return self._kinds is None

    def see(self, read: Read, kinds: AnyArrays) -> None:
        """Take note of what kinds of arrays an update has, if it is the first one, and of which of them are one."""
        self._kinds = kinds if self._kinds is None else self._kinds
        self.untie(read.buffers)

    def untie(self, buffers: Buffers) -> None:
        """Keep tied only what these buffers tie too."""
        if not self._tied:
            return
        names = {name for names in self._tied for name in names}
        places = {
            span.tensor.name: (address_of(buffer), segment.dtype, span.tensor.shape)
            for segment, tensors in zip(self._spec.segments, buffers, strict=True)
            for span, buffer in zip(segment.spans, tensors, strict=True)
            if buffer.size and span.tensor.name in names
        }
        tied: dict[Any, list[str]] = {}
        for number, group in enumerate(self._tied):
            for name in group:
                if name in places:
                    tied.setdefault((number, places[name]), []).append(name)
        self._tied = [group for group in tied.values() if len(group) > 1]

    def give(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a result: NumPy arrays by name where no update was seen."""
        if self._kinds is None:
            return dict(values)
        return given(values, self._kinds, {name: names[0] for names in self._tied for name in names[1:]})
