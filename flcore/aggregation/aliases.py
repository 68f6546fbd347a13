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

    Raises `TensorMismatch` where a target overlaps what is read, unless it is that very array of the same tensor, which
    is read before it is written.
    """
    outs = _places(targets)
    order = np.argsort(outs[:, 0], kind="stable")
    starts, ends = outs[order, 0], np.maximum.accumulate(outs[order, 1])
    is_in_place = False
    for buffers in (targets, *sources):
        places = _places(buffers)
        low = np.searchsorted(ends, places[:, 0], "right")  # the first target that ends behind where it begins
        high = np.searchsorted(starts, places[:, 1], "left")
        for number in np.flatnonzero(low < high).tolist():
            for other in order[low[number] : high[number]].tolist():
                if outs[other, 1] <= places[number, 0] or (buffers is targets and other == number):
                    continue
                # The array of another tensor is read too late, unless both tensors are one array in `out`, too.
                if not (outs[other] == places[number]).all() or not (outs[other] == outs[number]).all():
                    names = [span.tensor.name for segment in spec.segments for span in segment.spans]
                    raise TensorMismatch(
                        f"out: its memory overlaps that of tensor {names[number]!r} in an update, the base or out; "
                        "expected the array of the same tensor, or memory of its own",
                        tensor=names[other],
                    )
                is_in_place = is_in_place or buffers is not targets
    return is_in_place


def _places(buffers: Buffers) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Return where each tensor begins and ends; those without elements, nowhere."""
    found = [
        (address_of(each), address_of(each) + each.nbytes)
        if each.nbytes and not isinstance(each, DeviceArray)
        else (0, 0)
        for tensors in buffers
        for each in tensors
    ]
    return np.array(found, np.int64).reshape(-1, 2)
