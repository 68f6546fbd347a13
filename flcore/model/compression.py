"""Compressed payloads: encoded piece by piece while they are sent, decoded piece by piece when they arrive.

A client keeps the rounding error of an update and adds it to its next one (error feedback; Seide et al., 2014;
Karimireddy et al., 2019, arXiv:1901.09847). float64 values are rounded to float32 first; the error feedback does not
contain that rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flcore_kernels import NotFinite, Quantized, storage_dtype
from flcore_kernels import backend as backend_named
from flcore_layout import DTYPES, SegmentRange
from flcore_transport import Buffer, PayloadSink, PayloadSource
from flcore_transport.piece_format import join_body, split_body

from flcore.errors import NonFinite, OutOfBounds
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.wire_format import WireFormat

KernelArray = npt.NDArray[Any] | Quantized
Float32Array = npt.NDArray[np.float32]


def view_body(dtype: str, count: int, body: Buffer) -> KernelArray:
    """Return a piece's body as an operand of the kernels. Never copies."""
    elements, scales = split_body(dtype, count, memoryview(body))
    values: npt.NDArray[Any] = np.frombuffer(elements, storage_dtype(dtype))
    return Quantized(values, np.frombuffer(scales, np.float32)) if scales.nbytes else values


def to_float32(dtype: str, operand: KernelArray) -> Float32Array:
    """Return the values of an operand as float32; without a copy if they are float32."""
    if dtype == "float32" and not isinstance(operand, Quantized):
        return operand
    if dtype == "float64" and not isinstance(operand, Quantized):
        return operand.astype(np.float32)
    out = np.empty((operand.codes if isinstance(operand, Quantized) else operand).size, np.float32)
    backend_named().decode(operand, out, dtype)
    return out


class Residuals(Protocol):
    """Rounding errors of earlier updates, in memory (`ErrorFeedback`) or in a file."""

    def residual(self, piece: SegmentRange) -> Float32Array:
        """Return the error to add to a piece."""
        ...


class Compressor:
    """The source of a compressed payload.

    Args:
        wire_format: The dtypes in which the segments travel.
        source: The payload in the model's own dtypes.
        feedback: Rounding errors of earlier updates, which are added before encoding. Default: None.
    """

    def __init__(self, wire_format: WireFormat, source: PayloadSource, feedback: Residuals | None = None) -> None:
        self.layout = wire_format.layout
        self._wire_format, self._source, self._feedback = wire_format, source, feedback

    def read(self, piece: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a piece. Raises `NonFinite` or `OutOfBounds` if the wire dtype cannot hold a value."""
        own = self._wire_format.spec.segments[piece.segment].dtype
        if piece.dtype == own:
            return self._source.read(piece)
        encoded = self._encode(piece, self._values(piece))
        if isinstance(encoded, Quantized):
            return join_body(piece.dtype, piece.count, [encoded.codes.data], [encoded.scales.view(np.uint8).data])
        return [encoded.view(np.uint8).data]

    def rounding_error(self, piece: SegmentRange, body: memoryview | None = None) -> Float32Array:
        """Return the rounding error of a piece: its values before encoding, minus those after decoding.

        Args:
            piece: The piece.
            body: Its bytes, as `read` returns them. Default: None, it is encoded once more.
        """
        values = self._values(piece)
        encoded = self._encode(piece, values) if body is None else view_body(piece.dtype, piece.count, body)
        return values - to_float32(piece.dtype, encoded)

    def _values(self, piece: SegmentRange) -> Float32Array:
        own = self._wire_format.spec.segments[piece.segment].dtype
        buffers = self._source.read(replace(piece, dtype=own))
        body = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        values = to_float32(own, np.frombuffer(body, storage_dtype(own)))
        return values if self._feedback is None else values + self._feedback.residual(piece)

    def _encode(self, piece: SegmentRange, values: Float32Array) -> KernelArray:
        backend = backend_named()
        elements: npt.NDArray[Any] = np.empty(piece.count, storage_dtype(piece.dtype))
        block = DTYPES[piece.dtype].block
        out = Quantized(elements, np.empty(piece.count // block, np.float32)) if block else elements
        try:
            backend.encode(values, out, piece.dtype)
        except NotFinite as error:
            tensor, element = self._wire_format.spec.segments[piece.segment].locate(piece.first + error.element)
            raise NonFinite(f"element {element} is {error.value}", tensor=tensor.name) from None
        # float16 ends at 65504, and encoding rounds larger values to infinity. bfloat16 has float32's range.
        if piece.dtype == "float16" and (bad := backend.inspect(out, piece.dtype).first_bad) >= 0:
            tensor, element = self._wire_format.spec.segments[piece.segment].locate(piece.first + bad)
            raise OutOfBounds(
                f"element {element} is {values[bad]}, which float16 does not hold (bfloat16 does)", tensor=tensor.name
            )
        return out


class Decompressor:
    """The sink of a compressed payload. It writes decoded values to another sink, in the model's own dtypes."""

    def __init__(self, wire_format: WireFormat, sink: PayloadSink) -> None:
        self._wire_format, self._sink = wire_format, sink

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        """Decode the bytes of a piece and write its values."""
        own = self._wire_format.spec.segments[piece.segment].dtype
        if piece.dtype == own:
            self._sink.write(piece, body)
            return
        values = to_float32(piece.dtype, view_body(piece.dtype, piece.count, body))
        widened = values if own == "float32" else values.astype(NUMPY_DTYPES[own])
        self._sink.write(replace(piece, dtype=own), widened.view(np.uint8).data)


class ErrorFeedback:
    """The rounding errors of a client's updates, one float32 for each element of a compressed segment."""

    def __init__(self, wire_format: WireFormat) -> None:
        self.wire_format = wire_format
        self._residuals: dict[int, Float32Array] = {
            index: np.zeros(segment.elements, np.float32)
            for index, (segment, dtype) in enumerate(zip(wire_format.spec.segments, wire_format.dtypes, strict=True))
            if segment.dtype != dtype
        }

    def residual(self, piece: SegmentRange) -> Float32Array:
        """Return the error to add to a piece: a view, which `record` overwrites."""
        return self._residuals[piece.segment][piece.first : piece.first + piece.count]

    def record(self, sent: Compressor, body_of: Callable[[int], memoryview] | None = None) -> None:
        """Replace the errors by those of an update that is received, and whose pieces are not encoded again.

        Until then its pieces may be encoded again, with the same errors and so to the same bytes.

        Args:
            sent: The update.
            body_of: Returns the bytes of a piece, by its index. It is called once for each piece, in order, before the
                errors of the piece are replaced. Default: None, each piece is encoded once more.
        """
        for index, piece in enumerate(self.wire_format.pieces):
            body = None if body_of is None else body_of(index)
            if piece.segment in self._residuals:
                self.residual(piece)[:] = sent.rounding_error(piece, body)
