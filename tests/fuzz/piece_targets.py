"""Pieces as a hostile peer sends them: to an inbox, and on to a staged update."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from flcore_kernels import backend
from flcore_layout import DTYPES, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import Inbox, Outbox
from flcore_transport.framing import CHECKSUM, HEADER, HEADER_BYTES, encode_piece
from flcore_transport.piece_format import arrow_metadata, split_body

from flcore import Model, ModelSpec
from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import Staging
from flcore.errors import FlcoreError
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.rules.named import resolve_rule
from tests.fuzz.mutations import edge, mutate_bytes
from tests.fuzz.target import require

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "w": np.linspace(-1, 1, 300).astype(np.float32),
    "b": np.arange(7, dtype=np.float32),
    "step": np.array([12, 13], np.int64),
    "mask": np.array([True, False, True]),
}
SPEC = ModelSpec.of(ARRAYS)
FORMATS = [
    *(WireFormat.compressed(SPEC, dtype) for dtype in (None, "float16", "bfloat16", "int8[32]", "int8[64]")),
    *(WireFormat.compressed(SPEC, dtype) for dtype in ("int8[128]", "int8[256]")),
]


HEADER_FIELDS = [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), *((offset, 8) for offset in range(16, 56, 8))]
"""The offset and the size of each number in a piece's header."""

NOT_FINITE = (b"\xff" * 8, b"\0\0\x80\x7f" * 2, b"\0\0\xc0\x7f" * 2, b"\0\0\0\0\0\0\xf0\x7f", b"\0\x7c" * 4)


class _Bytes:
    """A payload of random bytes that are nowhere a NaN: source of an `Outbox`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def read(self, range_: SegmentRange) -> list[bytes]:
        row = DTYPES[range_.dtype]
        at = row.elements_at(range_.count)
        scales = row.scale_bytes(range_.count)
        body = random.Random(range_.first).randbytes(scales) + bytes(at - scales)
        return [body, random.Random(range_.first + 1).randbytes(range_.count * row.itemsize)]


class _Sink:
    def __init__(self) -> None:
        self.came: list[tuple[SegmentRange, memoryview]] = []

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        self.came.append((range_, body))


def mutate_piece(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Change a piece's header, metadata or body; most often its checksum is right all the same."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, data, other)
    changed = bytearray(data)
    match draw.randrange(6):
        case 0:  # a field of the header
            offset, size = draw.choice(HEADER_FIELDS)
            changed[offset : offset + size] = (edge(draw) % 256**size).to_bytes(size, "little")
        case 1:  # a number of the metadata
            at = HEADER_BYTES + 8 * draw.randrange(30)
            changed[at : at + 8] = edge(draw).to_bytes(8, "little")
        case 2:  # a bit anywhere
            at = draw.randrange(len(changed))
            changed[at] ^= 1 << draw.randrange(8)
        case 3:  # the body of one, the header of the other
            changed[HEADER_BYTES:] = other[HEADER_BYTES:]
        case 4:  # an element or a scale that no model has
            at = draw.randrange(HEADER_BYTES, len(changed)) // 8 * 8
            changed[at : at + 8] = draw.choice(NOT_FINITE)
        case _:
            changed[HEADER_BYTES:] = mutate_bytes(draw, bytes(changed[HEADER_BYTES:]), other)
    if draw.random() < 0.9 and len(changed) >= HEADER_BYTES:
        digest = xxhash.xxh3_64(bytes(changed[: HEADER.size]) + bytes(changed[HEADER_BYTES:])).intdigest()
        CHECKSUM.pack_into(changed, HEADER.size, digest)
    return bytes(changed)


class Pieces:
    """An inbox that expects one certain piece of a layout, for all dtypes of the wire."""

    name, share = "pieces", 250

    def __init__(self) -> None:
        segments = [Segment(dtype, 512) for dtype in DTYPES] + [Segment("float32", 256), Segment("int8[256]", 768)]
        self._layout = Layout((PayloadPart("model", tuple(segments[:9])), PayloadPart("mask", tuple(segments[9:]))))
        outbox = Outbox(_Bytes(self._layout))
        self._pieces = [outbox.piece(index) for index in range(len(outbox.piece_ranges))]
        self.cases = len(self._pieces)

    def make(self, draw: random.Random, case: int) -> bytes:
        piece = self._pieces[case]
        return mutate_piece(draw, piece, draw.choice(self._pieces)) if draw.random() < 0.98 else piece

    def feed(self, case: int, data: bytes) -> None:
        sink = _Sink()
        inbox = Inbox(self._layout, sink)
        inbox.received = case
        try:
            inbox.accept(data)
        except FlcoreError:
            require(inbox.received == case and not sink.came, "a refused piece was counted")
            raise
        ((range_, body),) = sink.came
        again = encode_piece(range_.part, range_.segment, range_.first, range_.dtype, range_.count, [body])
        require(again == data and inbox.received == case + 1, "the piece is encoded otherwise")
        require(range_ == inbox.piece_ranges[case], "another piece than expected was accepted")


class StagedPieces:
    """A staged update, which also checks the elements."""

    name, share = "staged pieces", 100

    def __init__(self) -> None:
        settings = AggregationSettings(resolve_rule("mean"), "exact", backend())
        self._staging, self._combiner = Staging(1 << 30, Path("never-used")), Combiner(SPEC, settings)
        self._valid: list[tuple[WireFormat, int, list[bytes]]] = []
        for form in FORMATS:
            outbox = Outbox(Compressor(form, Model.of(ARRAYS)))
            pieces = [outbox.piece(index) for index in range(len(form.pieces))]
            self._valid += [(form, index, pieces) for index in range(len(pieces))]
        self.cases = len(self._valid)

    def make(self, draw: random.Random, case: int) -> bytes:
        _, index, pieces = self._valid[case]
        other = draw.choice(draw.choice(self._valid)[2])
        return mutate_piece(draw, pieces[index], other) if draw.random() < 0.95 else pieces[index]

    def feed(self, case: int, data: bytes) -> None:
        form, index, pieces = self._valid[case]
        staged = StagedUpdate(form, self._combiner, self._staging, "a", 1.0)
        try:
            staged.allocate(may_wait=False).result(0)
            inbox = Inbox(form.layout, _Appended(staged))
            for piece in pieces[:index]:
                inbox.accept(piece)
            inbox.accept(data)
        finally:
            staged.discard()
        chunk, body = form.pieces[index], memoryview(data)[HEADER_BYTES + len(arrow_metadata_of(form, index)) :]
        again = encode_piece(chunk.part, chunk.segment, chunk.first, chunk.dtype, chunk.count, [body])
        require(again == data, "the piece is encoded otherwise")
        self._require_elements(form, chunk, body)

    @staticmethod
    def _require_elements(form: WireFormat, chunk: SegmentRange, body: memoryview) -> None:
        elements, scales = split_body(chunk.dtype, chunk.count, body)
        row = DTYPES[chunk.dtype]
        stored = np.frombuffer(elements, row.storage)
        if row.is_float:
            bits, exponent = stored.view(f"u{row.itemsize}"), 2**row.exponent_bits - 1
            require(bool((bits >> row.mantissa_bits & exponent != exponent).all()), "an element is not finite")
        if row.block:
            require(bool(np.isfinite(np.frombuffer(scales, np.float32)).all()), "a scale is not finite")
        if row.is_boolean:
            require(bool((stored <= 1).all()), "a bool is neither 0 nor 1")
        gaps = form.spec.segments[chunk.segment].gaps(chunk.first, chunk.first + chunk.count)
        for begin, stop in gaps.reshape(-1, 2):
            gap = stored[begin - chunk.first : stop - chunk.first]
            require(not gap.any(), "a gap is not zero")


class _Appended:
    def __init__(self, staged: StagedUpdate) -> None:
        self._staged = staged

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        self._staged.acquire_next().result(0)
        self._staged.append(range_, body)


def arrow_metadata_of(form: WireFormat, index: int) -> bytes:
    """Return the metadata of a piece of a payload."""
    return arrow_metadata(form.pieces[index].dtype, form.pieces[index].count)
