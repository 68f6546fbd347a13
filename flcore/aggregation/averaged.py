"""A running mean in float32: the mean of what there was and what came is written elsewhere, and taken if it is sound.

No element is looked at first, so this is the fastest way to add one update after the other, where there is memory.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_transport import PieceRange

from flcore.aggregation.combiner import Batch, Combiner
from flcore.aggregation.contributions import ArrayContribution
from flcore.errors import AggregationError

HEADROOM = 16
"""Powers of two between the largest element that the mean takes unseen and the end of float32."""

Tensors = list[npt.NDArray[Any]]


class Averaged:
    """The mean of one float32 segment so far, and memory for the next one: 8 bytes per element."""

    def __init__(self, combiner: Combiner, whole: PieceRange) -> None:
        self._combiner, self.piece = combiner, whole
        self._mean: Tensors | None = None
        self._spare: Tensors | None = None
        self._next: float | None = None
        self._weight = 0.0

    def prepare(self, contributions: Sequence[ArrayContribution]) -> None:
        """Write the next mean. Raises an `UpdateError` for a contribution that may not be admitted."""
        by, index = self._combiner.coefficients(contributions), self.piece.segment
        weight, self._next = math.fsum([self._weight, *by]), None
        if weight == 0:
            self._combiner.admit(contributions, [index])
            return
        spans = self._combiner.spec.segments[index].spans
        self._spare = self._spare or [np.empty(span.tensor.shape, np.float32) for span in spans]
        batch = Batch(self.piece, contributions, [each.buffers[index] for each in contributions], by)
        if self._mean is not None:
            so_far = ArrayContribution("the mean so far", self._weight, self._combiner.spec, [])
            batch = Batch(self.piece, [so_far, *contributions], [self._mean, *batch.parts], [self._weight, *by])
        scale = math.frexp(max(batch.by))[1]
        try:  # on a scale on which what may not be admitted overflows, and most of what may be does not
            self._combiner.average(batch, self._spare, scale - HEADROOM)
        except AggregationError:
            self._combiner.admit(contributions, [index])  # raises for the one that is to blame, if one is
            self._combiner.average(batch, self._spare, scale)
        self._next = weight

    def commit(self) -> None:
        """Take the new mean; the memory of the old one is the next to be written to."""
        if self._next is not None:
            self._mean, self._spare, self._weight = self._spare, self._mean, self._next
        self._next = None

    def take(self) -> Tensors:
        """Return the mean, in memory that is the caller's from now on, and begin anew."""
        mean, self._mean = self._mean, None
        self.clear()
        return mean or []

    def clear(self) -> None:
        """Let the mean go; its memory stays."""
        self._spare, self._mean, self._weight, self._next = self._spare or self._mean, None, 0.0, None
