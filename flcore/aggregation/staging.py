"""One client's update, staged: checked as it arrives, in chunks, until it is committed whole or dropped.

A chunk is as long as a piece on the wire, so that what a transport received is staged as it came, without a copy.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import EXACT_INTEGER_LIMIT, Backend, storage_dtype
from flcore_transport import piece_elements

from flcore.errors import NonFinite, OutOfBounds, TensorMismatch
from flcore.model.dtypes import DTYPES, dtype_name
from flcore.model.spec import ModelSpec, SegmentSpec, Span


class StagedUpdate:
    """An update on its way in. Elements enter through one of two doors, each of which takes every element once.

    `adopt` takes whole chunks of a segment in order and keeps them; `write` copies elements of a named tensor.
    """

    def __init__(self, spec: ModelSpec, backend: Backend, client: str, weight: float, max_abs: float) -> None:
        self.client, self.weight = client, weight
        self._spec, self._backend = spec, backend
        self._max_abs = min(max_abs, math.inf if weight <= 1 else np.finfo(np.float64).max / weight)
        self._chunks: list[dict[int, npt.NDArray[Any]]] = [{} for _ in spec.segments]
        self._adopted = [0] * len(spec.segments)
        self._written = dict.fromkeys((tensor.name for tensor in spec.tensors), 0)
        self._places = {
            span.tensor.name: (index, span) for index, seg in enumerate(spec.segments) for span in seg.spans
        }

    def adopt(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Take the elements of a segment from `first` on, in its storage dtype; the buffer is kept, not copied.

        Raises `NonFinite` or `OutOfBounds`, naming the tensor, and `TensorMismatch` where a gap is not zero.
        """
        spec = self._spec.segments[segment]
        if first != self._adopted[segment]:
            raise TensorMismatch(
                f"elements from {first} on came, expected {self._adopted[segment]}", client=self.client
            )
        self._check(spec, first, values)
        self._check_gaps(spec, first, values)
        self._chunks[segment][first // piece_elements(spec.dtype)] = values
        self._adopted[segment] += values.size

    def write(self, name: str, buffer: npt.ArrayLike, start: int = 0) -> None:
        """Copy the next elements of tensor `name`, in its own (C) order; `start` is the index of the first of them.

        Raises `TensorMismatch` for another dtype, an unknown name, or elements that are not the next ones.
        """
        if name not in self._places:
            raise TensorMismatch("the model has no tensor of this name", client=self.client, tensor=name)
        index, span = self._places[name]
        values = np.ascontiguousarray(buffer).reshape(-1)
        if dtype_name(values.dtype) != span.tensor.dtype:
            raise TensorMismatch(f"expected {span.tensor.dtype}, got {values.dtype}", client=self.client, tensor=name)
        if start != self._written[name] or start + values.size > span.tensor.size:
            raise TensorMismatch(
                f"elements {start} to {start + values.size} came; the next is {self._written[name]}, "
                f"the tensor has {span.tensor.size}",
                client=self.client,
                tensor=name,
            )
        self._copy(index, span.start + start, values)
        self._written[name] += values.size

    def require_whole(self) -> None:
        """Raise `TensorMismatch` unless every element is in."""
        for segment, adopted in zip(self._spec.segments, self._adopted, strict=True):
            if adopted != segment.elements:
                self._require_written(segment.spans)

    def take_chunk(self, segment: int, index: int) -> npt.NDArray[Any]:
        """Return a chunk and let it go. Tensors without elements have none."""
        return self._chunks[segment].pop(index)

    def take_segment(self, segment: int) -> list[npt.NDArray[Any]]:
        """Return all chunks of a segment, in order, and let them go."""
        chunks, self._chunks[segment] = self._chunks[segment], {}
        return [chunks[index] for index in sorted(chunks)]

    def drop(self) -> None:
        """Let all elements go."""
        self._chunks = [{} for _ in self._spec.segments]

    def _require_written(self, spans: tuple[Span, ...]) -> None:
        for span in spans:
            if self._written[span.tensor.name] != span.tensor.size:
                raise TensorMismatch(
                    f"only {self._written[span.tensor.name]} of {span.tensor.size} elements came",
                    client=self.client,
                    tensor=span.tensor.name,
                )

    def _copy(self, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        spec = self._spec.segments[segment]
        size = piece_elements(spec.dtype)
        stored = values.view(storage_dtype(spec.dtype))
        self._check(spec, first, stored)
        position = 0
        while position < stored.size:
            index, offset = divmod(first + position, size)
            chunk = self._chunks[segment].get(index)
            if chunk is None:
                chunk = np.zeros(min(size, spec.elements - index * size), stored.dtype)
                self._chunks[segment][index] = chunk
            part = stored[position : position + size - offset]
            chunk[offset : offset + part.size] = part
            position += part.size

    def _check(self, segment: SegmentSpec, first: int, values: npt.NDArray[Any]) -> None:
        seen = self._backend.inspect(values, segment.dtype)
        if seen.first_bad >= 0:
            tensor, element = segment.at(first + seen.first_bad)
            value = values.view(DTYPES[segment.dtype])[seen.first_bad]
            raise NonFinite(f"element {element} is {value}", client=self.client, tensor=tensor.name)
        limit = self._max_abs if DTYPES[segment.dtype].kind not in "iu" else min(self._max_abs, EXACT_INTEGER_LIMIT)
        if seen.magnitude > limit:
            where = int(np.argmax(np.abs(values.view(DTYPES[segment.dtype]).astype(np.float64))))
            tensor, element = segment.at(first + where)
            raise OutOfBounds(
                f"element {element} has magnitude {seen.magnitude:g}, more than the {limit:g} allowed",
                client=self.client,
                tensor=tensor.name,
            )

    def _check_gaps(self, segment: SegmentSpec, first: int, values: npt.NDArray[Any]) -> None:
        position, stop = first, first + values.size
        for span in segment.overlapping(first, stop):
            self._check_gap(segment, values[max(position - first, 0) : max(span.start - first, 0)], position)
            position = span.stop
        self._check_gap(segment, values[max(position - first, 0) :], position)

    def _check_gap(self, segment: SegmentSpec, gap: npt.NDArray[Any], position: int) -> None:
        if gap.any():
            tensor, _ = segment.at(position)
            raise TensorMismatch("the gap behind it is not zero", client=self.client, tensor=tensor.name)
