"""What a weight may be, and which accumulator a dtype takes."""

import math
import numbers
from typing import Any

from flcore_kernels import ACCUMULATORS, EXACT_RANGE

from flcore.errors import JobError, WeightError
from flcore.model.dtypes import INTEGERS

MAX_WEIGHT = 1e300


def require_weight(weight: Any, accumulate: str, client: str) -> float:
    """Return a weight as a float, or raise `WeightError`.

    It is a number >= 0 and below 1e300; exact sums take those that are 0 or within 2^-64 to 2^64.
    """
    is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    try:
        value = float(weight) if is_number else math.nan
    except OverflowError:
        value = math.inf
    if not 0 <= value < MAX_WEIGHT:
        raise WeightError(f"a weight is a finite number >= 0 and below 1e300, not {weight!r}", client=client)
    low, high = EXACT_RANGE
    if accumulate == "exact" and value != 0 and not low <= value <= high:
        raise WeightError(
            f"exact sums take weights that are 0 or between 2^-64 and 2^64, not {weight!r} "
            '(scale all weights alike, or choose accumulate="float64")',
            client=client,
        )
    return value


def require_sum(coefficients: list[float]) -> None:
    """Raise `WeightError` if all weights are zero."""
    if not math.fsum(coefficients) > 0:
        raise WeightError(f"the weights of all {len(coefficients)} updates are zero")


def require_accumulator(accumulate: str) -> str:
    """Return the name of an accumulator, or raise `JobError`."""
    if accumulate not in ACCUMULATORS:
        raise JobError(f"accumulate {accumulate!r} does not exist; expected one of {', '.join(ACCUMULATORS)}")
    return accumulate


def accumulator_of(dtype: str, accumulate: str) -> str:
    """Return what a segment is summed in: integers exactly, whatever is asked for floats."""
    return "exact" if dtype in INTEGERS else accumulate
