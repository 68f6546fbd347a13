"""The model that server and clients both have: the base of differences, or the model that clients began with.

Passthrough elements (see `passthrough`) must be equal to its elements.
"""

from dataclasses import replace
from typing import Any

from flcore_kernels import Backend
from flcore_layout import SegmentRange

from flcore.aggregation.contributions import Buffers, are_on_host, gather_range, to_host
from flcore.aggregation.passthrough import Mask, Values, is_free_of_passthrough, passthrough_mask
from flcore.model.chunks import ChunkSource
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec


class ReferenceModel:
    """The model that updates are compared with, read in ranges.

    If `updates_are_deltas`, it is the base: updates are differences from it, and the result is base plus mean. If not,
    updates are whole models, and only passthrough elements and unsigned bytes are compared with it.

    `source` is a model, or the tensors of one (None: a tensor of zeros). The largest magnitude of each range is cached:
    every update asks for it, and finding it reads the whole range.
    """

    def __init__(
        self, spec: ModelSpec, source: ChunkSource | Buffers, device: Backend, *, updates_are_deltas: bool
    ) -> None:
        self._spec, self._source, self._device = spec, source, device
        self.updates_are_deltas = updates_are_deltas
        self._magnitudes: dict[SegmentRange, float] = {}

    def storage_values(self, range_: SegmentRange) -> Values:
        """Return a range's elements, flat and in their storage dtype."""
        if isinstance(self._source, list):
            return gather_range(self._spec, self._source, range_)
        return self._source.chunk(range_.segment, range_.first, range_.first + range_.count)

    def tensors(self, segment: int) -> list[Any]:
        """Return a segment's tensors if the source is tensors; an empty list if it is a model."""
        return self._source[segment] if isinstance(self._source, list) else []

    def close(self) -> None:
        """Drop the model. Nothing can be read from it afterwards."""
        self._source = []

    def values(self, range_: SegmentRange) -> Values:
        """Return a range's elements in the tensors' dtype."""
        return self.storage_values(range_).view(DTYPES[self._spec.segments[range_.segment].dtype])

    def magnitude(self, range_: SegmentRange) -> float:
        """Return the largest magnitude in a range: infinite or NaN if an element is not finite."""
        dtype = self._spec.segments[range_.segment].dtype
        # Updates may be narrower on the wire: their range names the wire's dtype. The cache holds the model's.
        key = range_ if range_.dtype == dtype else replace(range_, dtype=dtype)
        if key not in self._magnitudes:
            (self._magnitudes[key],) = self._device.max_abs([self.storage_values(key)], key.dtype)
        return self._magnitudes[key]

    def has_passthrough(self, range_: SegmentRange) -> bool:
        """Return whether a range may have passthrough elements."""
        return not is_free_of_passthrough(self._spec.segments[range_.segment].dtype, self.magnitude(range_))

    def passthrough_mask(self, range_: SegmentRange) -> Mask:
        """Return which elements of a range are passed through."""
        return passthrough_mask(self.values(range_))


def passthrough_reference(spec: ModelSpec, buffers: Buffers, device: Backend) -> ReferenceModel | None:
    """Return a reference model of the elements that all updates must share with this one; None if it has none.

    Copies the tensors of unsigned bytes, and those in host memory that have passthrough elements. All others are None:
    a copy of the whole update would cost a model's memory.
    """
    kept: Buffers = []
    for segment, tensors in zip(spec.segments, buffers, strict=True):
        are_bytes, dtype = segment.dtype == "uint8", DTYPES[segment.dtype]
        if are_bytes or (
            are_on_host(tensors)
            and not is_free_of_passthrough(segment.dtype, *device.max_abs([tensors], segment.dtype))
        ):
            flat = [to_host(tensor) for tensor in tensors]
            kept.append(
                [values.copy() if are_bytes or passthrough_mask(values.view(dtype)).any() else None for values in flat]
            )
        else:
            kept.append([None] * len(tensors))
    if all(tensor is None for tensors in kept for tensor in tensors):
        return None
    return ReferenceModel(spec, kept, device, updates_are_deltas=False)
