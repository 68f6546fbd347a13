"""How one dtype's part of a running combination is kept, so that a client that must be refused leaves no trace.

A fold that fails spoils its total. So `Folded` looks at the values first, which reads them once more. `Averaged` needs
no such look: it writes the mean of what there was and what came to other memory, and takes it if all went well.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flcore_kernels import Backend, storage_dtype

from flcore.aggregation.checks import check_values, largest_allowed
from flcore.aggregation.gather import blamed
from flcore.model.spec import SegmentSpec

Tensors = list[npt.NDArray[Any]]


MOST = {"float32": 2.0**96, "float64": 2.0**960}
"""The largest magnitude that a float total takes, so that no sum of them overflows and ends the round for all."""


class Column(Protocol):
    """One segment of a running combination."""

    def prepare(self, parts: Sequence[Tensors], coefficients: Sequence[float], clients: list[str]) -> None:
        """Raise an `UpdateError` that names client and tensor, and change nothing, or be ready for `commit`."""
        ...

    def commit(self) -> None:
        """Count in what was prepared."""
        ...

    def finish(self, targets: Tensors | None) -> Tensors:
        """Return the combination, in `targets` if they are given, and begin anew."""
        ...

    def clear(self) -> None:
        """Begin anew."""
        ...


class Folded:
    """A total of the accumulator's kind, 4, 8 or 16 bytes per element, in memory that is kept from round to round."""

    def __init__(self, segment: SegmentSpec, accumulate: str, device: Backend, max_abs: float) -> None:
        self._segment, self._device, self._max_abs = segment, device, min(max_abs, MOST.get(accumulate, math.inf))
        self._total, self._is_empty = device.total(segment.elements, accumulate), True
        self._prepared: tuple[Sequence[Tensors], Sequence[float]] | None = None

    def prepare(self, parts: Sequence[Tensors], coefficients: Sequence[float], clients: list[str]) -> None:
        """Look at all values."""
        require_sound(self._device, self._segment, parts, coefficients, clients, self._max_abs)
        self._prepared = parts, coefficients

    def commit(self) -> None:
        """Fold."""
        if self._prepared is not None:
            self._is_empty = False
            with blamed(self._segment, []):
                self._device.fold(self._total, *self._prepared, self._segment.dtype)
        self._prepared = None

    def finish(self, targets: Tensors | None) -> Tensors:
        """Divide the total."""
        results = _like(self._segment) if targets is None else targets
        with blamed(self._segment, []):
            self._device.finish(self._total, results, self._segment.dtype)
        self.clear()
        return results

    def clear(self) -> None:
        """Empty the total; its memory stays."""
        self._prepared = None
        if not self._is_empty:
            self._total.clear()
            self._is_empty = True


class Averaged:
    """A running mean in float32 and memory for the next one: 8 bytes per element."""

    def __init__(self, segment: SegmentSpec, device: Backend, max_abs: float) -> None:
        self._segment, self._device, self._max_abs = segment, device, max_abs
        self._mean: Tensors | None = None
        self._weight = 0.0
        self._spare: Tensors | None = None
        self._next: float | None = None

    def prepare(self, parts: Sequence[Tensors], coefficients: Sequence[float], clients: list[str]) -> None:
        """Write the mean of the mean so far and what came to the spare memory."""
        weight = math.fsum([self._weight, *coefficients])
        if self._max_abs < math.inf or weight == 0:
            require_sound(self._device, self._segment, parts, coefficients, clients, self._max_abs)
        self._next = None
        if weight == 0:
            return
        self._spare = self._spare or _like(self._segment)
        before = [] if self._mean is None else [self._mean]
        with blamed(self._segment, [*["the mean so far"] * len(before), *clients]):
            self._device.mean(
                [*before, *parts], [*[self._weight] * len(before), *coefficients], self._spare, "float32", "float32"
            )
        self._next = weight

    def commit(self) -> None:
        """Take the new mean; the memory of the old one is the next to be written to."""
        if self._next is not None:
            self._mean, self._spare, self._weight = self._spare, self._mean, self._next
        self._next = None

    def finish(self, targets: Tensors | None) -> Tensors:
        """Return the mean."""
        results = self._mean or _like(self._segment)
        self.clear()
        if targets is None:
            return results
        for target, values in zip(targets, results, strict=True):
            target[...] = values
        return targets

    def clear(self) -> None:
        """Let the mean go; memory to write to stays."""
        self._mean, self._weight, self._next = None, 0.0, None


def require_sound(
    device: Backend,
    segment: SegmentSpec,
    parts: Sequence[Tensors],
    coefficients: Sequence[float],
    clients: Sequence[str],
    max_abs: float,
) -> None:
    """Raise `NonFinite` or `OutOfBounds`, naming client and tensor, unless all values may be folded: reads them."""
    tops = device.largest(parts, segment.dtype)
    for tensors, coefficient, client, top in zip(parts, coefficients, clients, tops, strict=True):
        most = min(max_abs, math.inf if coefficient <= 1 else np.finfo(np.float64).max / coefficient)
        if math.isfinite(top) and top <= largest_allowed(segment.dtype, most):
            continue
        for span, values in zip(segment.spans, tensors, strict=True):
            flat = values.reshape(-1)
            check_values(device, segment, segment.dtype, span.start, flat, max_abs=most, client=client)


def _like(segment: SegmentSpec) -> Tensors:
    """Return new arrays for the tensors of a segment, in its storage dtype, with anything in them."""
    return [np.empty(span.tensor.shape, storage_dtype(segment.dtype)) for span in segment.spans]
