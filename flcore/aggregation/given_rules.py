"""Rules that need all updates at once, as the engine calls them: somebody's code, held to what it promises."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from flcore_transport import PieceRange

from flcore.aggregation.known import Values
from flcore.aggregation.rules import Columns, Geometry
from flcore.errors import AggregationError
from flcore.model.spec import SegmentSpec

LEAST_COEFFICIENT = 2.0**-64
"""Smaller ones are 0: exact sums take none."""

Figures = npt.NDArray[np.float64]


def combined(
    rule: Columns, segment: SegmentSpec, piece: PieceRange, columns: Sequence[Values], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return what a rule makes of a range, with zeros in the gaps between tensors, which it does not see."""
    filled = _filled(segment, piece)
    elements = _elements(filled, columns)
    with _named(rule, "combine"):
        made = np.asarray(rule.combine(elements, weights))
        if made.dtype.kind == "c":
            raise TypeError("expected real numbers, got complex ones")
        values = made.astype(np.float64, copy=False)
    if values.shape != elements[0].shape:
        raise AggregationError(
            f"rule {rule.name!r}: expected an array of {elements[0].size} elements, got one of shape {values.shape}"
        )
    if values.size == piece.count:
        return values
    spread, position = np.zeros(piece.count), 0
    for each in filled:
        before, position = position, position + each.stop - each.start
        spread[each] = values[before:position]
    return spread


def measured(
    rule: Geometry, segment: SegmentSpec, piece: PieceRange, columns: Sequence[Values], before: Figures | None
) -> Figures:
    """Return a rule's figures of a range, added to those of the ranges before."""
    elements = _elements(_filled(segment, piece), columns)
    with _named(rule, "measure"):
        figures = np.array(rule.measure(elements), np.float64)
    if before is not None and figures.shape != before.shape:
        raise AggregationError(
            f"rule {rule.name!r}: measure returned figures of shape {figures.shape} for a range, after {before.shape}"
        )
    figures = figures if before is None else before + figures
    if not np.isfinite(figures).all():
        raise AggregationError(
            f"rule {rule.name!r}: its figures are not finite (narrow floats overflow: convert first)"
        )
    return figures


def coefficients_of(rule: Geometry, figures: Figures | None, weights: Sequence[float]) -> tuple[list[float], float]:
    """Return a rule's coefficients, and what they leave to 1."""
    if figures is None:  # the model has no elements
        return [1 / len(weights)] * len(weights), 0.0
    with _named(rule, "coefficients"):
        given = np.asarray(rule.coefficients(figures, weights), np.float64)
    if given.shape != (len(weights),) or not (given >= 0).all() or not given.sum() <= 1 + 1e-9:
        raise AggregationError(
            f"rule {rule.name!r}: expected {len(weights)} coefficients >= 0 that add up to at most 1, got {given}"
        )
    kept = [value if value >= LEAST_COEFFICIENT else 0.0 for value in given.tolist()]
    left = 1 - float(given.sum())
    return kept, left if left >= 1e-9 else 0.0


def _filled(segment: SegmentSpec, piece: PieceRange) -> list[slice]:
    """Return where a range has elements of tensors, and no gap."""
    gaps = segment.gaps(piece.first, piece.first + piece.count) - piece.first
    borders = [0, *gaps.tolist(), piece.count]
    return [slice(*run) for run in zip(borders[::2], borders[1::2], strict=True) if run[0] < run[1]]


def _elements(filled: Sequence[slice], columns: Sequence[Values]) -> list[Values]:
    """Return the elements of tensors in a range, read-only."""
    found = [
        column[filled[0]] if len(filled) == 1 else np.concatenate([column[each] for each in filled])
        for column in columns
    ]
    for each in found:
        each.flags.writeable = False
    return found


@contextmanager
def _named(rule: Columns | Geometry, what: str) -> Iterator[None]:
    """Have an error of somebody's code name the rule."""
    try:
        yield
    except Exception as error:  # whatever it raises, this round has no result
        raise AggregationError(f"rule {rule.name!r}: {what} raised {type(error).__name__}: {error}") from error
