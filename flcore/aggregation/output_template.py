"""The arrays that results are written to, and how they are given back: alike the first update's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Backend, DeviceArray

from flcore.aggregation.buffers import address_of
from flcore.aggregation.contributions import ArrayContribution, Buffers
from flcore.errors import TensorMismatch
from flcore.model.arrays import AnyArrays, apply_converters, empty_like
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


def allocate(spec: ModelSpec) -> dict[str, npt.NDArray[Any]]:
    """Return new arrays for a model, with anything in them."""
    return {tensor.name: np.empty(tensor.shape, DTYPES[tensor.dtype]) for tensor in spec.tensors}


def allocate_like(spec: ModelSpec, like: Mapping[str, Any], device: Backend) -> dict[str, Any]:
    """Return new arrays for a model, on the device that combines where those of `like` are and can be made."""
    if device.name == "cpu":
        return allocate(spec)
    return {each.name: empty_like(like.get(each.name), each.shape, DTYPES[each.dtype]) for each in spec.tensors}


class OutputTemplate:
    """How results are given back: of the first update's kinds and nesting, with what all updates tie tied.

    Tensors are tied where they are one array in memory.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._converters: AnyArrays | None = None
        self._tied: list[list[str]] = [[tensor.name for tensor in spec.tensors]]

    @property
    def is_empty(self) -> bool:
        """Whether no update was seen yet."""
        return self._converters is None

    def add_update(self, update: ArrayContribution) -> None:
        """Take note of what kinds of arrays an update has, if it is the first one, and of which of them are one."""
        self._converters = update.converters if self._converters is None else self._converters
        self.keep_common_ties(update.buffers)

    def keep_common_ties(self, buffers: Buffers) -> None:
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

    def restore(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a result: NumPy arrays by name where no update was seen."""
        if self._converters is None:
            return dict(values)
        return apply_converters(
            values, self._converters, {name: names[0] for names in self._tied for name in names[1:]}
        )


def require_no_overlap(spec: ModelSpec, targets: Buffers, sources: Sequence[Buffers]) -> bool:
    """Return whether results are written in place of an array that is read.

    Raises `TensorMismatch` where the array of a tensor in `out` overlaps that of another one there, or any that is read
    but the array of the same tensor, which is read before it is written.
    """
    names = [span.tensor.name for segment in spec.segments for span in segment.spans]
    outs, places = _memory_ranges([targets]), _memory_ranges(sources)
    order = np.argsort(outs[:, 0], kind="stable")
    starts, ends = outs[order].T
    clashes = np.flatnonzero(starts[1:] < ends[:-1])
    if clashes.size:
        raise _overlap_error("another array of out", names[order[clashes[0] + 1]])
    low = np.searchsorted(ends, places[:, 0], "right")  # the first target that ends behind where an array begins
    high = np.searchsorted(starts, places[:, 1], "left")
    nearest, tensors = order[np.minimum(low, order.size - 1)], np.arange(len(places)) % len(names)
    is_same = (high == low + 1) & (nearest == tensors) & (outs[nearest] == places).all(axis=1)
    odd = np.flatnonzero((low < high) & ~is_same)
    if odd.size:
        raise _overlap_error(f"tensor {names[tensors[odd[0]]]!r} in an update or the base", names[nearest[odd[0]]])
    return bool(is_same.any())


def _overlap_error(what: str, tensor: str) -> TensorMismatch:
    return TensorMismatch(
        f"out: its memory overlaps that of {what}; expected the array of the same tensor in an update, or "
        "memory of its own (np.empty_like)",
        tensor=tensor,
    )


def _memory_ranges(models: Sequence[Buffers]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Return where each tensor begins and ends; those without elements, nowhere."""
    found = [
        (address_of(each), address_of(each) + each.nbytes)
        if each.nbytes and not isinstance(each, DeviceArray)
        else (0, 0)
        for buffers in models
        for tensors in buffers
        for each in tensors
    ]
    return np.array(found, np.int64).reshape(-1, 2)
