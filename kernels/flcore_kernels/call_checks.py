"""Checks of a call's arguments, before a device does anything; the same for all devices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flcore_layout import DTYPES

from flcore_kernels import weights
from flcore_kernels.backend import Operand
from flcore_kernels.dtypes import Storage, lookup
from flcore_kernels.errors import BufferMismatch, WeightRange
from flcore_kernels.rows import offsets_of
from flcore_kernels.totals import Total


def admit(total: Total, operands: Sequence[Operand], weights_: Sequence[float]) -> tuple[Any, Any]:
    """Check weights, and count operands in. Return the weights, and the weights on the total's scale."""
    values = weights.checked(weights_, total.accumulate)
    if len(operands) != values.size:
        raise BufferMismatch(f"expected one weight per operand, got {values.size} weights for {len(operands)} operands")
    scale, taken, counted = total.scale, values, values
    if total.accumulate != "exact" and values.any():
        scale = weights.scale_of(values) if scale is None else scale
        # The first weights that are not all 0 fix the scale of a float total. Later weights are scaled by it too.
        taken = weights.scaled(values, scale, total.accumulate)
        counted = np.ldexp(taken, scale)
    total.admit(len(operands), weights.exact_sum(counted))
    total.scale = scale
    return values, taken


def admit_total(total: Total, other: Total, kind: type = np.ndarray) -> None:
    """Add another total's counts, or raise `BufferMismatch`, `SpoiledTotal` or `TooManyTerms`."""
    total.require_usable(kind)
    other.require_usable(kind)
    if total is other or (total.accumulate, total.elements) != (other.accumulate, other.elements):
        raise BufferMismatch(
            f"expected another total of {total.elements} elements and accumulator {total.accumulate} to merge, got "
            f"{'the same total' if total is other else f'{other.elements} elements and {other.accumulate}'}"
        )
    total.admit(other.terms, other.weight)


def require_within(sizes: Sequence[int], total: Total) -> None:
    """Raise `BufferMismatch` if buffers of these sizes reach beyond the total."""
    if sizes and (end := int(offsets_of(sizes)[-2]) + sizes[-1]) > total.elements:
        raise BufferMismatch(
            f"expected buffers within the total's {total.elements} elements; these reach to element {end}"
        )


def require_result(dtype: str) -> Storage:
    """Return the storage of a result's dtype, or raise `BufferMismatch` for a quantized one."""
    storage = lookup(dtype)
    if storage.block:
        raise BufferMismatch(f"a result cannot be {dtype}; write it as float32, and encode it afterwards")
    return storage


def divisor_of(total: Total) -> tuple[float, float]:
    """Return the number by which a total's values are divided, as a float64 and a rest (0.0 for float totals)."""
    if total.weight == 0:
        raise WeightRange("the sum of the weights is 0; a mean needs at least one weight above 0")
    divisor, rest = weights.as_float_pair(total.weight)
    return (divisor, rest) if total.scale is None else (float(np.ldexp(divisor, -total.scale)), 0.0)


def require_encodable(dtype: str) -> None:
    """Raise `BufferMismatch` unless float32 values can be encoded as `dtype`."""
    lookup(dtype)
    if not DTYPES[dtype].compresses_float32:
        raise BufferMismatch(f"expected bfloat16, float16 or a quantized dtype to encode to, got {dtype}")
