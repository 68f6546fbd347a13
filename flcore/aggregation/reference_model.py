"""Elements that no mean is taken of, and the model that server and clients both have, whose elements those must be.

Such elements are values that are not finite, and integers beyond 2^53, which float64 cannot hold: masks of -inf,
hashes, sentinels. They are called constants here. Where all updates have the same, the result has it too, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import EXACT_INTEGER_LIMIT, Backend
from flcore_layout import SegmentRange

from flcore.aggregation.contributions import Buffers, are_on_host, gather_range, to_host
from flcore.model.chunks import ChunkSource
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class ReferenceModel:
    """The model that updates are differences from (`are_deltas`), or that clients began with; read in ranges.

    `source` is a model, or the tensors of one (None: zeros). The largest magnitude of each range is remembered.
    """

    def __init__(self, spec: ModelSpec, source: ChunkSource | Buffers, device: Backend, *, are_deltas: bool) -> None:
        self._spec, self._source, self._device, self.are_deltas = spec, source, device, are_deltas
        self._magnitudes: dict[SegmentRange, float] = {}

    def storage_values(self, piece: SegmentRange) -> Values:
        """Return a range's elements, flat and in their storage dtype."""
        if isinstance(self._source, list):
            return gather_range(self._spec, self._source, piece)
        return self._source.chunk(piece.segment, piece.first, piece.first + piece.count)

    def tensors(self, segment: int) -> list[Any]:
        """Return a segment's tensors, of a model that was given as such."""
        return self._source[segment] if isinstance(self._source, list) else []

    def close(self) -> None:
        """Let the model go: nothing is read any more."""
        self._source = []

    def values(self, piece: SegmentRange) -> Values:
        """Return a range's elements in the tensors' dtype."""
        return self.storage_values(piece).view(DTYPES[self._spec.segments[piece.segment].dtype])

    def magnitude(self, piece: SegmentRange) -> float:
        """Return the largest magnitude in a range; infinite or NaN where not all of it is finite."""
        dtype = self._spec.segments[piece.segment].dtype
        own = piece if piece.dtype == dtype else replace(piece, dtype=dtype)
        if own not in self._magnitudes:
            (self._magnitudes[own],) = self._device.max_abs([self.storage_values(own)], own.dtype)
        return self._magnitudes[own]

    def has_constants(self, piece: SegmentRange) -> bool:
        """Whether a range has elements that no mean is taken of."""
        return not has_no_constants(self._spec.segments[piece.segment].dtype, self.magnitude(piece))

    def constant_mask(self, piece: SegmentRange) -> Mask:
        """Return which elements of a range no mean is taken of."""
        return constant_mask(self.values(piece))


def constants_reference(spec: ModelSpec, buffers: Buffers, device: Backend) -> ReferenceModel | None:
    """Return the elements that must stay unchanged in an update, as a reference model; None if there are none.

    It has copies of the tensors of unsigned bytes, and of those with constants unless they are on a device.
    """
    kept: Buffers = []
    for segment, tensors in zip(spec.segments, buffers, strict=True):
        are_bytes, own = segment.dtype == "uint8", DTYPES[segment.dtype]
        if are_bytes or not (
            has_no_constants(segment.dtype, *device.max_abs([tensors], segment.dtype)) or not are_on_host(tensors)
        ):
            flat = [to_host(tensor) for tensor in tensors]
            kept.append([each.copy() if are_bytes or constant_mask(each.view(own)).any() else None for each in flat])
        else:
            kept.append([None] * len(tensors))
    if all(tensor is None for tensors in kept for tensor in tensors):
        return None
    return ReferenceModel(spec, kept, device, are_deltas=False)


def constant_mask(values: Values) -> Mask:
    """Return which elements are no quantities; `values` are of the tensor's own dtype.

    >>> constant_mask(np.array([1.0, -np.inf])).tolist(), constant_mask(np.array([2**53, 2**53 + 1])).tolist()
    ([False, True], [False, True])
    """
    if values.dtype.kind in "iu":
        if values.dtype.itemsize < 8:
            return np.zeros(values.size, np.bool_)
        return (values > EXACT_INTEGER_LIMIT) | (values < -EXACT_INTEGER_LIMIT if values.dtype.kind == "i" else False)
    return ~np.isfinite(values)


def has_no_constants(dtype: str, magnitude: float) -> bool:
    """Whether all elements are sure to be quantities where the largest magnitude, as a float64, is this."""
    return magnitude < EXACT_INTEGER_LIMIT if dtype in INTEGERS else magnitude < float("inf")


def differing_bits(values: Values, others: Values) -> Mask:
    """Return which elements do not have the same bits."""
    bits = f"u{values.dtype.itemsize}"
    different: Mask = values.view(bits) != others.view(bits)
    return different


def shared_constants(columns: Sequence[Values]) -> tuple[Mask, int]:
    """Return where all arrays have the same constant, and which array has one that others have not (-1: none has)."""
    masks = [constant_mask(column) for column in columns]
    is_shared = masks[0].copy()
    for column in columns[1:]:
        is_shared &= ~differing_bits(column, columns[0])
    return is_shared, next((index for index, mask in enumerate(masks) if (mask & ~is_shared).any()), -1)


def zero_where(values: Values, mask: Mask) -> Values:
    """Return a copy with zeros where the mask is set."""
    copy = values.copy()
    copy[mask] = 0
    return copy
