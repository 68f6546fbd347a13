"""Whether arrays to write to share memory with arrays that are read."""

from collections.abc import Sequence

import numpy as np
from flcore_kernels import DeviceArray

from flcore.aggregation.contributions import Buffers
from flcore.aggregation.gather import address_of
from flcore.errors import TensorMismatch
from flcore.model.spec import ModelSpec


def require_apart(spec: ModelSpec, targets: Buffers, sources: Sequence[Buffers]) -> bool:
    """Return whether results are written in place of an array that is read.

    Raises `TensorMismatch` where the array of a tensor in `out` overlaps that of another one there, or any that is read
    but the array of the same tensor, which is read before it is written.
    """
    names = [span.tensor.name for segment in spec.segments for span in segment.spans]
    outs, places = _places([targets]), _places(sources)
    order = np.argsort(outs[:, 0], kind="stable")
    starts, ends = outs[order].T
    clashes = np.flatnonzero(starts[1:] < ends[:-1])
    if clashes.size:
        raise _overlapping("another array of out", names[order[clashes[0] + 1]])
    low = np.searchsorted(ends, places[:, 0], "right")  # the first target that ends behind where an array begins
    high = np.searchsorted(starts, places[:, 1], "left")
    nearest, tensors = order[np.minimum(low, order.size - 1)], np.arange(len(places)) % len(names)
    is_same = (high == low + 1) & (nearest == tensors) & (outs[nearest] == places).all(axis=1)
    odd = np.flatnonzero((low < high) & ~is_same)
    if odd.size:
        raise _overlapping(f"tensor {names[tensors[odd[0]]]!r} in an update or the base", names[nearest[odd[0]]])
    return bool(is_same.any())


def _overlapping(what: str, tensor: str) -> TensorMismatch:
    return TensorMismatch(
        f"out: its memory overlaps that of {what}; expected the array of the same tensor in an update, or memory of its "
        "own (np.empty_like)",
        tensor=tensor,
    )


def _places(models: Sequence[Buffers]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
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
