"""Finding out what went wrong: which operand is to blame, and where."""

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
    """Return a buffer that is in the processor's memory."""
    return buffer


class Inspector(Protocol):
    """Whatever can look at a buffer."""

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
    """Return what went wrong at or behind an element: an operand that is not finite, a term or a sum that is too large.

    `fetch` brings a buffer to the processor's memory.
    """
    row = lookup(dtype)
    places = offsets_of(sizes_of(operands[0]))
    run = int(np.searchsorted(places, element, side="right")) - 1
    for index, operand in enumerate(operands):
        buffer = buffers_of(operand)[run]
        seen = inspector.inspect(buffer, dtype)
        if seen.first_bad >= 0:
            at = int(places[run]) + seen.first_bad
            value = values_of(fetch(buffer), row, dtype, seen.first_bad, seen.first_bad + 1)[0]
            return NotFinite(index, at, float(value))
        too_large = None
        with np.errstate(over="ignore"):
            if seen.magnitude > row.limit:
                too_large = f"the magnitude {seen.magnitude:.0f} is more than a sum of {dtype} takes, {row.limit:.0f}"
            elif not np.isfinite(seen.magnitude * weights[index]):
                too_large = f"{seen.magnitude:g} times its weight, {weights[index]:g}, is too large"
        if too_large is not None:
            values = values_of(fetch(buffer), row, dtype, 0, sizes_of(buffer)[0])
            return Overflow(too_large, int(places[run]) + int(np.argmax(np.abs(values))), index)
    return Overflow(f"element {element} does not fit into {where}", element, where=where)


def values_of(operand: Buffer, row: Storage, dtype: str, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Return the values of a few elements in float64; the slow way."""
    if isinstance(operand, Quantized):
        with np.errstate(all="ignore"):
            scales = operand.scales.reshape(-1)[np.arange(start, stop) // row.block]
            return (scales * operand.codes.reshape(-1)[start:stop].astype(np.float32)).astype(np.float64)
    flat = np.ascontiguousarray(operand.reshape(-1)[start:stop])
    with np.errstate(all="ignore"):  # a signalling NaN
        if dtype == "bfloat16":
            return (flat.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return (flat.view(np.float16) if dtype == "float16" else flat).astype(np.float64)
