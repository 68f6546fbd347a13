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
    outs, number = _places([targets]), sum(map(len, targets))
    places = np.concatenate([outs, _places(sources)])
    order = np.argsort(outs[:, 0], kind="stable")
    starts, ends = outs[order, 0], np.maximum.accumulate(outs[order, 1])
    low = np.searchsorted(ends, places[:, 0], "right")  # the first target that ends behind where a place begins
    high = np.searchsorted(starts, places[:, 1], "left")
    is_in_place = False
    for index in np.flatnonzero(low < high).tolist():
        tensor = index % number
        for target in order[low[index] : high[index]].tolist():
            if outs[target, 1] <= places[index, 0] or index == target:
                continue
            if index < number or tensor != target or not (outs[target] == places[index]).all():
                names = [span.tensor.name for segment in spec.segments for span in segment.spans]
                where = (
                    "another array of out" if index < number else f"tensor {names[tensor]!r} in an update or the base"
                )
                raise TensorMismatch(
                    f"out: its memory overlaps that of {where}; expected the array of the same tensor in an update, or "
                    "memory of its own (np.empty_like)",
                    tensor=names[target],
                )
            is_in_place = True
    return is_in_place


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
