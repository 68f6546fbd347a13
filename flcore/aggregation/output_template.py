"""The arrays of a result: how they are allocated, converted to the first update's libraries, and shared."""

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
    """Return uninitialized arrays for a model."""
    return {tensor.name: np.empty(tensor.shape, DTYPES[tensor.dtype]) for tensor in spec.tensors}


def allocate_like(spec: ModelSpec, like: Mapping[str, Any], device: Backend) -> dict[str, Any]:
    """Return uninitialized arrays for a model: on the device that combines, for those of `like` that are there."""
    if device.name == "cpu":
        return allocate(spec)
    return {
        tensor.name: empty_like(like.get(tensor.name), tensor.shape, DTYPES[tensor.dtype]) for tensor in spec.tensors
    }


class OutputTemplate:
    """The form of a result: the first update's libraries, devices and nesting, and the tensors that share an array.

    Tensors are *tied* if they are one array in memory, such as an embedding that is also the output layer. Tensors that
    are tied in all updates are tied in the result.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._converters: AnyArrays | None = None
        self._tied: list[list[str]] = [[tensor.name for tensor in spec.tensors]]

    @property
    def is_empty(self) -> bool:
        """Whether no update has been added."""
        return self._converters is None

    def add_update(self, update: ArrayContribution) -> None:
        """Record the first update's libraries and nesting, and every update's ties."""
        self._converters = update.converters if self._converters is None else self._converters
        self.keep_common_ties(update.buffers)

    def keep_common_ties(self, buffers: Buffers) -> None:
        """Keep the ties that these buffers have too."""
        if not self._tied:  # the usual case, after the first update
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
        """Return a result in the first update's libraries and nesting; NumPy arrays by name if there was no update."""
        if self._converters is None:
            return dict(values)
        return apply_converters(
            values, self._converters, {name: names[0] for names in self._tied for name in names[1:]}
        )


def require_no_overlap(spec: ModelSpec, targets: Buffers, sources: Sequence[Buffers]) -> bool:
    """Return whether a result overwrites an input.

    Only the array of the same tensor may be overwritten: kernels read an element of all inputs before they write it.

    Raises:
        TensorMismatch: An array of `out` overlaps another one of `out`, or an input other than the same tensor's array.
    """
    names = [span.tensor.name for segment in spec.segments for span in segment.spans]
    outs, inputs = _memory_ranges([targets]), _memory_ranges(sources)
    # Sorted targets that do not overlap are searched in logarithmic time: there may be clients · tensors inputs.
    order = np.argsort(outs[:, 0], kind="stable")
    starts, ends = outs[order].T
    clashes = np.flatnonzero(starts[1:] < ends[:-1])
    if clashes.size:
        raise _overlap_error("another array of out", names[order[clashes[0] + 1]])
    # An input overlaps the targets from `low` (the first that ends after its begin) to `high` (excluded).
    low = np.searchsorted(ends, inputs[:, 0], "right")
    high = np.searchsorted(starts, inputs[:, 1], "left")
    nearest, tensors = order[np.minimum(low, order.size - 1)], np.arange(len(inputs)) % len(names)
    is_same = (high == low + 1) & (nearest == tensors) & (outs[nearest] == inputs).all(axis=1)
    refused = np.flatnonzero((low < high) & ~is_same)
    if refused.size:
        first = refused[0]
        raise _overlap_error(f"tensor {names[tensors[first]]!r} in an update or the base", names[nearest[first]])
    return bool(is_same.any())


def _overlap_error(what: str, tensor: str) -> TensorMismatch:
    return TensorMismatch(
        f"out: its memory overlaps that of {what}; expected the array of the same tensor in an update, or "
        "memory of its own (np.empty_like)",
        tensor=tensor,
    )


def _memory_ranges(models: Sequence[Buffers]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Return the first and the end address of each tensor; (0, 0) for empty tensors and those on a device."""
    addresses = [
        (address_of(tensor), address_of(tensor) + tensor.nbytes)
        if tensor.nbytes and not isinstance(tensor, DeviceArray)
        else (0, 0)
        for buffers in models
        for tensors in buffers
        for tensor in tensors
    ]
    return np.array(addresses, np.int64).reshape(-1, 2)
