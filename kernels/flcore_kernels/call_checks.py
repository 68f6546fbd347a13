"""What a call has to satisfy before a device does anything, whichever device it is."""

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
    """Count operands in; return their weights, and their weights as the total takes them."""
    values = weights.checked(weights_, total.accumulate)
    if len(operands) != values.size:
        raise BufferMismatch(
            f"expected one weight an operand: {len(operands)} operands came with {values.size} weights"
        )
    scale, taken, counted = total.scale, values, values
    if total.accumulate != "exact" and values.any():
        scale = weights.scale_of(values) if scale is None else scale
        taken = weights.scaled(values, scale, total.accumulate)
        counted = np.ldexp(taken, scale)
    total.admit(len(operands), weights.exact_sum(counted))
    total.scale = scale
    return values, taken


def admit_total(total: Total, other: Total, kind: type = np.ndarray) -> None:
    """Count another total's terms in, or raise `BufferMismatch`, `SpoiledTotal` or `TooManyTerms`."""
    total.require_usable(kind)
    other.require_usable(kind)
    if total is other or (total.accumulate, total.elements) != (other.accumulate, other.elements):
        raise BufferMismatch(
            f"two totals of a kind can be merged, not {total.elements} {total.accumulate} "
            f"with {other.elements} {other.accumulate} elements"
        )
    total.admit(other.terms, other.weight)


def require_within(sizes: Sequence[int], total: Total) -> None:
    """Raise `BufferMismatch` where buffers of these sizes reach beyond the total."""
    if sizes and (end := int(offsets_of(sizes)[-2]) + sizes[-1]) > total.elements:
        raise BufferMismatch(f"the buffers reach to element {end}, the total has {total.elements}")


def require_result(dtype: str) -> Storage:
    """Return the row of a result's dtype, or raise `BufferMismatch` for a quantized one."""
    row = lookup(dtype)
    if row.block:
        raise BufferMismatch(f"a result has a dtype of its own, not {dtype}: encode it afterwards")
    return row


def divisor_of(total: Total) -> tuple[float, float]:
    """Return the sum of weights as a total's values are to be divided by it, and what that float64 leaves of it."""
    if total.weight == 0:
        raise WeightRange("the sum of the weights is 0; a mean needs one above")
    divisor, rest = weights.as_float_pair(total.weight)
    return (divisor, rest) if total.scale is None else (float(np.ldexp(divisor, -total.scale)), 0.0)


def require_encodable(dtype: str) -> None:
    """Raise `BufferMismatch` for a dtype that float32 values are not encoded as."""
    lookup(dtype)
    if not DTYPES[dtype].compresses_float32:
        raise BufferMismatch(f"values are encoded as bfloat16, float16 or quantized int8, not as {dtype}")
