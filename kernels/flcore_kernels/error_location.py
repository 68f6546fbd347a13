"""Finding the cause of an error: the operand, and the element.

Kernels report only the first element of a block or a tile with an error. The search runs after that, once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flcore_kernels.backend import Buffer, Operand, Quantized
from flcore_kernels.dtypes import Storage, lookup
from flcore_kernels.errors import KernelError, NotFinite, Overflow
from flcore_kernels.inspection import Inspection
from flcore_kernels.rows import buffers_of, offsets_of, sizes_of


def unchanged(buffer: Buffer) -> Buffer:
    """Return a buffer that is in host memory already."""
    return buffer


class Inspector(Protocol):
    """The part of a backend that the search uses."""

    def inspect(self, operand: Buffer, dtype: str) -> Inspection:
        """See `Backend.inspect`."""
        ...


def locate_error(
    inspector: Inspector,
    operands: Sequence[Operand],
    weights: npt.NDArray[np.float64],
    dtype: str,
    element: int,
    where: str,
    fetch: Callable[[Buffer], Buffer] = unchanged,
) -> KernelError:
    """Return the error of a call that failed at an element or after it.

    It is `NotFinite` or `Overflow` of the first operand with a bad element in the buffer at `element`. If no operand is
    at fault, it is an `Overflow` of their sum, which does not fit into what `where` names. `fetch` copies a buffer to
    host memory.
    """
    storage = lookup(dtype)
    places = offsets_of(sizes_of(operands[0]))
    run = int(np.searchsorted(places, element, side="right")) - 1
    for index, operand in enumerate(operands):
        buffer = buffers_of(operand)[run]
        seen = inspector.inspect(buffer, dtype)
        if seen.first_bad >= 0:
            at = int(places[run]) + seen.first_bad
            value = values_of(fetch(buffer), storage, dtype, seen.first_bad, seen.first_bad + 1)[0]
            return NotFinite(index, at, float(value))
        too_large = None
        with np.errstate(over="ignore"):
            if seen.magnitude > storage.limit:
                too_large = f"the magnitude {seen.magnitude:.0f} is beyond the limit of {dtype}, {storage.limit:.0f}"
            elif not np.isfinite(seen.magnitude * weights[index]):
                too_large = f"{seen.magnitude:g} times its weight, {weights[index]:g}, is beyond the range of float64"
        if too_large is not None:
            values = values_of(fetch(buffer), storage, dtype, 0, sizes_of(buffer)[0])
            return Overflow(too_large, int(places[run]) + int(np.argmax(np.abs(values))), index)
    return Overflow(f"element {element} does not fit into {where}", element, where=where)


def values_of(operand: Buffer, storage: Storage, dtype: str, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Return the values of a few elements as float64, converted with NumPy."""
    if isinstance(operand, Quantized):
        with np.errstate(all="ignore"):
            scales = operand.scales.reshape(-1)[np.arange(start, stop) // storage.block]
            return (scales * operand.codes.reshape(-1)[start:stop].astype(np.float32)).astype(np.float64)
    flat = np.ascontiguousarray(operand.reshape(-1)[start:stop])
    with np.errstate(all="ignore"):  # a signalling NaN
        if dtype == "bfloat16":
            return (flat.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return (flat.view(np.float16) if dtype == "float16" else flat).astype(np.float64)
