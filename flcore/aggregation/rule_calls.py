"""Calls of `Columns` and `Geometry` rules. They are user code, so their results are checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import EXACT_RANGE, STORAGE
from flcore_layout import SegmentRange

from flcore.aggregation.passthrough import Values
from flcore.errors import AggregationError, WeightError
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import SegmentSpec
from flcore.rules.kinds import Columns, Geometry

MIN_COEFFICIENT = EXACT_RANGE[0]
"""Smaller coefficients count as 0, as exact sums take none below it."""

ROUNDING = 1e-9
"""A sum of coefficients this close to 1 is 1: normalizing by a sum in float64 leaves a few roundings."""

Figures = npt.NDArray[np.float64]


def call_combine(
    rule: Columns, segment: SegmentSpec, range_: SegmentRange, columns: Sequence[Values], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return a rule's result for a range, with zeros in the gaps between tensors, which the rule does not get."""
    filled, elements = _tensor_elements(segment, range_, columns)
    with _attribute_to_rule(rule, "combine"):
        result = np.asarray(rule.combine(elements, weights))
        if result.dtype.kind == "c":
            raise TypeError("expected real numbers, got complex ones")
        values = result.astype(np.float64, copy=False)
    if values.shape != elements[0].shape:
        raise _rule_error(rule, f"expected an array of {elements[0].size} elements, got one of shape {values.shape}")
    if filled is None:
        return values
    spread = np.zeros(range_.count)
    spread[filled] = values
    return spread


def round_to_dtype(values: npt.NDArray[np.float64], dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return values rounded to a dtype, ties to even, and which of them fit into it.

    >>> round_to_dtype(np.array([2.5, 300.0]), "int8")[1].tolist()
    [True, False]
    """
    with np.errstate(all="ignore"):
        if dtype in INTEGERS:
            low, high = STORAGE[dtype].range
            whole = np.rint(values)
            fits = (whole >= low) & (whole <= high)
            return np.where(fits, whole, 0).astype(DTYPES[dtype]), fits
        narrow = (_round_to_odd(values) if dtype == "bfloat16" else values).astype(DTYPES[dtype])
    return narrow, np.isfinite(narrow)


def call_measure(
    rule: Geometry, segment: SegmentSpec, range_: SegmentRange, columns: Sequence[Values], before: Figures | None
) -> Figures:
    """Return a rule's figures of a range, added to those of earlier ranges."""
    elements = _tensor_elements(segment, range_, columns)[1]
    with _attribute_to_rule(rule, "measure"):
        figures = np.array(rule.measure(elements), np.float64)
    if before is not None and figures.shape != before.shape:
        raise _rule_error(rule, f"measure returned figures of shape {figures.shape} for a range, after {before.shape}")
    figures = figures if before is None else before + figures
    if not np.isfinite(figures).all():
        raise _rule_error(rule, "its figures are not finite (narrow floats overflow: convert first)")
    return figures


def call_coefficients(rule: Geometry, figures: Figures | None, weights: Sequence[float]) -> tuple[list[float], float]:
    """Return a rule's coefficients, and the coefficient of zeros: 1 minus their sum (see `RangeInputs`)."""
    if figures is None:  # the model has no elements
        return [1 / len(weights)] * len(weights), 0.0
    with _attribute_to_rule(rule, "coefficients"):
        coefficients = np.asarray(rule.coefficients(figures, weights), np.float64)
    if coefficients.shape != (len(weights),) or not (coefficients >= 0).all() or not coefficients.sum() <= 1 + ROUNDING:
        raise _rule_error(
            rule, f"expected {len(weights)} coefficients >= 0 that add up to at most 1, got {coefficients}"
        )
    kept = [value if value >= MIN_COEFFICIENT else 0.0 for value in coefficients.tolist()]
    remainder = 1 - float(coefficients.sum())
    return kept, remainder if remainder >= ROUNDING else 0.0


def _round_to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return float32 values rounded to odd: the last bit is set where digits were cut off.

    `ml_dtypes` rounds float64 to float32 and then to bfloat16. Two roundings to nearest are wrong near ties; to odd and
    then to nearest is right (Boldo and Melquiond, 2008, "Emulation of a FMA and correctly rounded sums: proved
    algorithms using rounding to odd").
    """
    single = values.astype(np.float32)
    is_cut = single.astype(np.float64) != values
    is_cut &= np.isfinite(values)
    bits = single.view(np.uint32)
    bits -= is_cut & (np.abs(single) > np.abs(values))
    bits |= is_cut
    return single


def _tensor_elements(
    segment: SegmentSpec, range_: SegmentRange, columns: Sequence[Values]
) -> tuple[npt.NDArray[np.bool_] | None, list[Values]]:
    """Return which elements of a range are not in gaps (None: all), and the columns of these, read-only."""
    gaps, filled = segment.gaps(range_.first, range_.first + range_.count), None
    if gaps.size:
        filled = np.ones(range_.count, np.bool_)
        for begin, end in (gaps - range_.first).reshape(-1, 2).tolist():
            filled[begin:end] = False
    elements = [column.view() if filled is None else column[filled] for column in columns]
    for column in elements:
        column.flags.writeable = False
    return filled, elements


@contextmanager
def _attribute_to_rule(rule: Columns | Geometry, what: str) -> Iterator[None]:
    """Turn an exception of a rule's code into an `AggregationError` that names the rule."""
    try:
        yield
    except WeightError:  # as a sum raises it, where all weights are zero
        raise
    except Exception as error:  # user code may raise anything
        raise _rule_error(rule, f"{what} raised {type(error).__name__}: {error}") from error


def _rule_error(rule: Columns | Geometry, why: str) -> AggregationError:
    return AggregationError(f"rule {rule.name!r}: {why}")
