"""Payloads as sequences of pieces, without a socket."""

import numpy as np
import pytest
from flcore_layout import DTYPES, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import Buffer, Inbox, Outbox, PieceError
from flcore_transport.errors import PayloadIncomplete
from flcore_transport.piece_format import PieceRanges, join_body, piece_elements, split_body

F32, I8, Q64 = (piece_elements(dtype) for dtype in ("float32", "int8", "int8[64]"))


class Memory:
    """A payload in memory: source and sink."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.segments = {
            (p, s): (bytearray(segment.elements * row.itemsize), bytearray(row.scale_bytes(segment.elements)))
            for p, part in enumerate(layout.parts)
            for s, segment in enumerate(part.segments)
            for row in [DTYPES[segment.dtype]]
        }

    def read(self, piece: SegmentRange) -> list[Buffer]:
        elements, scales = self._views(piece)
        return join_body(piece.dtype, piece.count, [elements], [scales])

    def write(self, piece: SegmentRange, body: memoryview) -> None:
        for view, came in zip(self._views(piece), split_body(piece.dtype, piece.count, body), strict=True):
            view[:] = came

    def _views(self, piece: SegmentRange) -> tuple[memoryview, memoryview]:
        elements, scales = self.segments[piece.part, piece.segment]
        row, stop = DTYPES[piece.dtype], piece.first + piece.count
        return (
            memoryview(elements)[piece.first * row.itemsize : stop * row.itemsize],
            memoryview(scales)[row.scale_bytes(piece.first) : row.scale_bytes(stop)],
        )


def layout(*parts: list[tuple[str, int]]) -> Layout:
    return Layout(tuple(PayloadPart(f"part-{i}", tuple(Segment(*s) for s in part)) for i, part in enumerate(parts)))


def filled(of: Layout) -> Memory:
    memory = Memory(of)
    for number, segment in enumerate(memory.segments.values()):
        for buffer in segment:
            buffer[:] = np.random.default_rng(number).bytes(len(buffer))
    return memory


LAYOUTS = [
    layout(),
    layout([]),
    layout([("float32", 0)]),
    layout([("float32", 256)]),
    layout([("float32", F32)]),
    layout([("float32", F32 + 256), ("int8", 512)], [("float32", 0), ("int8", 2 * I8)]),
    layout([("float32", 512), ("int8[64]", 2 * Q64 + 256)], [("int8[256]", 768), ("int8[32]", 0)]),
]


@pytest.mark.parametrize("of", LAYOUTS)
def test_a_payload_survives_the_journey(of: Layout) -> None:
    sent, received = filled(of), Memory(of)
    outbox, inbox = Outbox(sent), Inbox(of, received)
    for index in range(len(outbox.piece_ranges)):
        assert not inbox.is_complete
        inbox.accept(outbox.piece(index))
    inbox.finish()
    assert received.segments == sent.segments


def test_the_ranges_cover_every_element_once_and_in_order() -> None:
    plan = PieceRanges(layout([("float32", 3 * F32 + 512), ("int8", 256)]))
    assert [(p.segment, p.first, p.count) for p in plan] == [
        (0, 0, F32),
        (0, F32, F32),
        (0, 2 * F32, F32),
        (0, 3 * F32, 512),
        (1, 0, 256),
    ]
    with pytest.raises(IndexError):
        plan[5]


def test_a_full_piece_of_codes_has_as_many_elements_as_one_of_int8() -> None:
    plan = PieceRanges(layout([("int8[64]", I8 + 256)]))
    assert [(p.first, p.count) for p in plan] == [(0, I8), (I8, 256)]


def test_a_source_that_gives_another_body_than_its_layout_has_is_refused_before_it_is_sent() -> None:
    class Short(Memory):
        def read(self, piece: SegmentRange) -> list[Buffer]:
            return super().read(piece)[:-1]

    with pytest.raises(PieceError, match=r"the body of 256 of 'int8.64.': 16 bytes came, expected 272"):
        Outbox(Short(layout([("int8[64]", 256)]))).piece(0)


@pytest.mark.parametrize("segment", [("float32", 100), ("float32", -256), ("complex64", 256), ("int8[64]", 64)])
def test_a_layout_that_no_model_has_is_refused(segment: tuple[str, int]) -> None:
    with pytest.raises(PieceError, match="multiple of 256"):
        PieceRanges(layout([segment]))


def test_an_inbox_takes_pieces_in_order_only_and_says_where_it_stands() -> None:
    of = layout([("float32", 2 * F32)])
    outbox, inbox = Outbox(filled(of)), Inbox(of, Memory(of))
    with pytest.raises(PieceError, match="piece 0 of 2: out of order"):
        inbox.accept(outbox.piece(1))
    inbox.accept(outbox.piece(0))
    with pytest.raises(PieceError, match="piece 1 of 2: out of order"):
        inbox.accept(outbox.piece(0))
    with pytest.raises(PayloadIncomplete, match="1 of 2 pieces came"):
        inbox.finish()
    inbox.accept(outbox.piece(1))
    with pytest.raises(PieceError, match="only 2"):
        inbox.accept(outbox.piece(1))
    assert inbox.received == 2


def test_a_refused_piece_leaves_the_inbox_as_it_was() -> None:
    of = layout([("float32", 256)])
    outbox, inbox = Outbox(filled(of)), Inbox(of, Memory(of))
    with pytest.raises(PieceError, match="piece 0 of 1: corrupt"):
        inbox.accept(outbox.piece(0)[:-1] + b"\0")
    inbox.accept(outbox.piece(0))
    inbox.finish()


def test_a_piece_whose_sink_raised_was_not_received() -> None:
    class Full(Memory):
        is_full = True

        def write(self, piece: SegmentRange, body: memoryview) -> None:
            if self.is_full:
                raise OSError("no space left")
            super().write(piece, body)

    of = layout([("float32", 256)])
    sent, sink = filled(of), Full(of)
    outbox, inbox = Outbox(sent), Inbox(of, sink)
    with pytest.raises(OSError, match="no space left"):
        inbox.accept(outbox.piece(0))
    assert inbox.received == 0 and not inbox.is_complete
    sink.is_full = False
    inbox.accept(outbox.piece(0))
    assert sink.segments == sent.segments
