"""Rules that need all updates at once, as the engine calls them: user code, whose results are checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE
from flcore_layout import SegmentRange

from flcore.aggregation.reference_model import Values
from flcore.aggregation.rules import Columns, Geometry
from flcore.errors import AggregationError
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import SegmentSpec

MIN_COEFFICIENT = 2.0**-64
"""Smaller ones are 0: exact sums take none."""

Statistics = npt.NDArray[np.float64]


def call_combine(
    rule: Columns, segment: SegmentSpec, piece: SegmentRange, columns: Sequence[Values], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return what a rule makes of a range, with zeros in the gaps between tensors, which it does not see."""
    filled, elements = _tensor_elements(segment, piece, columns)
    with _attribute_to_rule(rule, "combine"):
        made = np.asarray(rule.combine(elements, weights))
        if made.dtype.kind == "c":
            raise TypeError("expected real numbers, got complex ones")
        values = made.astype(np.float64, copy=False)
    if values.shape != elements[0].shape:
        raise _rule_error(rule, f"expected an array of {elements[0].size} elements, got one of shape {values.shape}")
    if filled is None:
        return values
    spread = np.zeros(piece.count)
    spread[filled] = values
    return spread


def round_to_dtype(values: npt.NDArray[np.float64], dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return values rounded to a dtype, ties to even, and which of them it holds.

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
    rule: Geometry, segment: SegmentSpec, piece: SegmentRange, columns: Sequence[Values], before: Statistics | None
) -> Statistics:
    """Return a rule's figures of a range, added to those of the ranges before."""
    elements = _tensor_elements(segment, piece, columns)[1]
    with _attribute_to_rule(rule, "measure"):
        statistics = np.array(rule.measure(elements), np.float64)
    if before is not None and statistics.shape != before.shape:
        raise _rule_error(
            rule, f"measure returned figures of shape {statistics.shape} for a range, after {before.shape}"
        )
    statistics = statistics if before is None else before + statistics
    if not np.isfinite(statistics).all():
        raise _rule_error(rule, "its figures are not finite (narrow floats overflow: convert first)")
    return statistics


def call_coefficients(
    rule: Geometry, statistics: Statistics | None, weights: Sequence[float]
) -> tuple[list[float], float]:
    """Return a rule's coefficients, and what they leave to 1."""
    if statistics is None:  # the model has no elements
        return [1 / len(weights)] * len(weights), 0.0
    with _attribute_to_rule(rule, "coefficients"):
        given = np.asarray(rule.coefficients(statistics, weights), np.float64)
    if given.shape != (len(weights),) or not (given >= 0).all() or not given.sum() <= 1 + 1e-9:
        raise _rule_error(rule, f"expected {len(weights)} coefficients >= 0 that add up to at most 1, got {given}")
    kept = [value if value >= MIN_COEFFICIENT else 0.0 for value in given.tolist()]
    left = 1 - float(given.sum())
    return kept, left if left >= 1e-9 else 0.0


def _round_to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return float32 values whose last bit is set where anything was cut off, so that rounding them again rounds once.

    (ml_dtypes rounds float64 to float32 and then to bfloat16, which is wrong near ties. Boldo and Melquiond, 2008,
    "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd".)
    """
    single = values.astype(np.float32)
    is_cut = single.astype(np.float64) != values
    is_cut &= np.isfinite(values)
    bits = single.view(np.uint32)
    bits -= is_cut & (np.abs(single) > np.abs(values))
    bits |= is_cut
    return single


def _tensor_elements(
    segment: SegmentSpec, piece: SegmentRange, columns: Sequence[Values]
) -> tuple[npt.NDArray[np.bool_] | None, list[Values]]:
    """Return where a range has elements of tensors (None: everywhere), and these, read-only."""
    gaps, filled = segment.gaps(piece.first, piece.first + piece.count), None
    if gaps.size:
        filled = np.ones(piece.count, np.bool_)
        for begin, end in (gaps - piece.first).reshape(-1, 2).tolist():
            filled[begin:end] = False
    elements = [column.view() if filled is None else column[filled] for column in columns]
    for each in elements:
        each.flags.writeable = False
    return filled, elements


@contextmanager
def _attribute_to_rule(rule: Columns | Geometry, what: str) -> Iterator[None]:
    """Have an error of somebody's code name the rule."""
    try:
        yield
    except Exception as error:  # any exception of a rule means that this round has no result
        raise _rule_error(rule, f"{what} raised {type(error).__name__}: {error}") from error


def _rule_error(rule: Columns | Geometry, why: str) -> AggregationError:
    return AggregationError(f"rule {rule.name!r}: {why}")
