"""How results are given back: as arrays of the first update's libraries and nesting."""

from collections.abc import Mapping
from typing import Any

from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.aggregation.gather import address_of
from flcore.model.arrays import AnyArrays, given
from flcore.model.spec import ModelSpec


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

    def see(self, update: ArrayContribution) -> None:
        """Take note of what kinds of arrays an update has, if it is the first one, and of which of them are one."""
        self._kinds = update.kinds if self._kinds is None else self._kinds
        self.untie(update.buffers)

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
