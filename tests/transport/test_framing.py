"""One piece, to the byte: golden file, Arrow's view of it, and everything that is refused."""

import random
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from flcore_layout import DTYPES
from flcore_transport import Buffer, PieceError, ProtocolMismatch, TransportError
from flcore_transport.framing import CHECKSUM, HEADER, HEADER_BYTES, MAX_PIECE_BYTES, decode_piece, encode_piece
from flcore_transport.messages import PROTOCOL
from flcore_transport.piece_format import (
    PIECE_BODY_BYTES,
    arrow_message_bytes,
    arrow_metadata,
    arrow_schema_message,
    body_bytes,
    join_body,
    piece_elements,
    split_body,
)
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
BODY = np.arange(256, dtype=np.float32)
PLAIN = [name for name, row in DTYPES.items() if not row.block]
QUANTIZED = [name for name, row in DTYPES.items() if row.block]
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def piece() -> bytes:
    return encode_piece(0, 1, 512, "float32", 256, [BODY[:100].data, BODY[100:].data])


def codes_and_scales(dtype: str, count: int) -> tuple[bytes, bytes]:
    codes = (np.arange(count) % 255 - 127).astype(np.int8)
    scales = np.float32(0.5) * np.arange(1, count // DTYPES[dtype].block + 1, dtype=np.float32)
    return codes.tobytes(), scales.tobytes()


def quantized_piece(dtype: str, first: int = 512, count: int = 256) -> bytes:
    codes, scales = codes_and_scales(dtype, count)
    return encode_piece(0, 1, first, dtype, count, join_body(dtype, count, [codes], [scales]))


def arrow_batch(dtype: str, codes: bytes, scales: bytes) -> pa.RecordBatch:
    items = pa.field("item", pa.int8(), nullable=False)
    of_block = pa.list_(items, DTYPES[dtype].block)
    columns = [
        pa.array(np.frombuffer(scales, np.float32)),
        pa.FixedSizeListArray.from_arrays(pa.array(np.frombuffer(codes, np.int8)), type=of_block),
    ]
    fields = [pa.field("scale", pa.float32(), nullable=False), pa.field("codes", of_block, nullable=False)]
    return pa.record_batch(columns, pa.schema(fields))


def changed_and_hashed(original: bytes, position: int) -> bytes:
    changed = bytearray(original)
    changed[position] ^= 1
    digest = xxhash.xxh3_64(bytes(changed[: HEADER.size]) + bytes(changed[HEADER_BYTES:])).intdigest()
    CHECKSUM.pack_into(changed, HEADER.size, digest)
    return bytes(changed)


def read(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(decode_piece(data, 0, 1, 512, "float32", 256), np.float32)


def test_the_wire_form_is_the_golden_file() -> None:
    assert PROTOCOL == 4, "the wire has changed: add a golden file for the new version, and keep this one"
    assert piece() == (GOLDEN / "piece-v4.bin").read_bytes()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_the_wire_form_of_quantized_elements_is_the_golden_file(dtype: str) -> None:
    block = DTYPES[dtype].block
    assert quantized_piece(dtype) == (GOLDEN / f"piece-v4-int8-{block}.bin").read_bytes()


def test_a_piece_comes_back_as_a_view_of_its_bytes() -> None:
    data = piece()
    assert np.array_equal(read(data), BODY)
    assert np.shares_memory(read(data), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("dtype", PLAIN)
def test_arrow_reads_a_segment_as_a_stream(dtype: str) -> None:
    body = bytes(range(256)) * DTYPES[dtype].itemsize
    pieces = [encode_piece(0, 0, first, dtype, 256, [body]) for first in (0, 256)]
    stream = arrow_schema_message(dtype) + b"".join(data[HEADER_BYTES:] for data in pieces)
    with pa.ipc.open_stream(stream + END_OF_STREAM) as reader:
        column = reader.read_all()["value"]
    assert column.null_count == 0
    assert b"".join(chunk.buffers()[1].to_pybytes()[: len(body)] for chunk in column.chunks) == body * 2


@pytest.mark.parametrize("ending", [END_OF_STREAM, b""])
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_arrow_reads_quantized_pieces_as_a_stream_with_an_end_or_torn_after_one(dtype: str, ending: bytes) -> None:
    counts = (512, 512, 256)
    parts = [codes_and_scales(dtype, count) for count in counts]
    messages = [quantized_piece(dtype, 0, count)[HEADER_BYTES:] for count in counts]
    with pa.ipc.open_stream(arrow_schema_message(dtype) + b"".join(messages) + ending) as reader:
        table = reader.read_all()
    table.validate(full=True)
    assert table.schema.equals(arrow_batch(dtype, *parts[0]).schema)
    assert table.schema.field("codes").metadata == {b"flcore.dtype": dtype.encode()}
    assert table["scale"].null_count == table["codes"].null_count == 0
    assert table["scale"].to_numpy().tobytes() == b"".join(scales for _, scales in parts)
    codes = table["codes"].combine_chunks().flatten()
    assert codes.null_count == 0
    assert codes.to_numpy().tobytes() == b"".join(codes for codes, _ in parts)


@pytest.mark.parametrize("dtype", ["float32", *QUANTIZED])
def test_arrow_reads_a_stream_torn_within_a_piece_up_to_the_last_whole_one(dtype: str) -> None:
    message = arrow_metadata(dtype, 256) + bytes(body_bytes(dtype, 256))
    with pa.ipc.open_stream(arrow_schema_message(dtype) + message + message[:-1]) as reader:
        assert reader.read_next_batch().num_rows == 256 // (DTYPES[dtype].block or 1)
        with pytest.raises((pa.ArrowInvalid, OSError)):
            reader.read_next_batch()


@pytest.mark.parametrize(("dtype", "count"), [("float64", 256), ("float32", 524_288), ("int8", 2_097_152)])
def test_our_metadata_is_what_arrow_writes(dtype: str, count: int) -> None:
    field = pa.field("value", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
    batch = pa.record_batch([pa.array(np.zeros(count, dtype))], pa.schema([field]))
    assert batch.serialize().to_pybytes().startswith(arrow_metadata(dtype, count))


@pytest.mark.parametrize("count", [256, 512, 768, 2_097_152])
@pytest.mark.parametrize("dtype", QUANTIZED)
def test_our_quantized_message_is_what_arrow_writes(dtype: str, count: int) -> None:
    written = arrow_batch(dtype, *codes_and_scales(dtype, count)).serialize().to_pybytes()
    assert quantized_piece(dtype, 0, count)[HEADER_BYTES:] == written


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_a_message_begins_in_its_segments_stream_can_be_computed(dtype: str) -> None:
    schema = arrow_schema_message(dtype)
    assert len(schema) % 8 == 0
    for count in (256, 512, 768, piece_elements(dtype)):
        assert arrow_message_bytes(dtype, count) == len(arrow_metadata(dtype, count)) + body_bytes(dtype, count)
        assert arrow_message_bytes(dtype, count) % 8 == len(arrow_metadata(dtype, count)) % 8 == 0
    message = arrow_metadata(dtype, 256) + bytes(body_bytes(dtype, 256))
    second = len(schema) + arrow_message_bytes(dtype, 256)
    assert pa.ipc.read_message((schema + message + message)[second:]).serialize().to_pybytes() == message


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_piece_fits_the_limit_of_a_message(dtype: str) -> None:
    count = piece_elements(dtype)
    assert count * DTYPES[dtype].itemsize == PIECE_BODY_BYTES
    assert HEADER_BYTES + arrow_message_bytes(dtype, count) <= MAX_PIECE_BYTES


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[Buffer]:
    """`data` in buffers, empty ones among them."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [memoryview(data)[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.data(), st.sampled_from(list(DTYPES)), st.integers(1, 9).map(lambda n: n * 256), st.integers(0, 2**32))
def test_elements_and_scales_of_any_bits_survive_the_journey(
    data: st.DataObject, dtype: str, count: int, seed: int
) -> None:
    row, random_bytes = DTYPES[dtype], random.Random(seed).randbytes
    elements, scales = random_bytes(count * row.itemsize), random_bytes(row.scale_bytes(count))
    body = join_body(dtype, count, data.draw(cut(elements)), data.draw(cut(scales)))
    sent = encode_piece(3, 1, 1024, dtype, count, body)
    assert len(sent) == HEADER_BYTES + arrow_message_bytes(dtype, count)
    received = decode_piece(sent, 3, 1, 1024, dtype, count)
    assert [bytes(view) for view in split_body(dtype, count, received)] == [elements, scales]
    assert encode_piece(3, 1, 1024, dtype, count, [received]) == sent


def test_a_body_is_split_into_views() -> None:
    data = quantized_piece("int8[256]")
    codes, scales = split_body("int8[256]", 256, decode_piece(data, 0, 1, 512, "int8[256]", 256))
    assert codes.obj is data and scales.obj is data
    assert (codes.nbytes, scales.nbytes) == (256, 4)


@pytest.mark.parametrize(
    ("elements", "scales", "message"),
    [(255, 4, "the elements of 256 of 'int8.256.': 255 bytes came, expected 256"), (256, 8, "scales .* expected 4")],
)
def test_a_body_of_other_lengths_is_not_put_together(elements: int, scales: int, message: str) -> None:
    with pytest.raises(PieceError, match=message):
        join_body("int8[256]", 256, [bytes(elements)], [bytes(scales)])


def test_a_plain_dtype_has_no_scales() -> None:
    with pytest.raises(PieceError, match="the scales of 256 of 'float32': 4 bytes came, expected 0"):
        join_body("float32", 256, [bytes(1024)], [bytes(4)])


def test_a_body_of_another_length_is_neither_sent_nor_split() -> None:
    with pytest.raises(PieceError, match=r"the body of 256 of .*: 260 bytes came, expected 264"):
        encode_piece(0, 0, 0, "int8[256]", 256, [bytes(4), bytes(256)])
    with pytest.raises(PieceError, match=r"the body of 256 of .*: 260 bytes came, expected 264"):
        split_body("int8[256]", 256, memoryview(bytes(260)))


@pytest.mark.parametrize(("dtype", "count"), [("int8[64]", 64), ("int8[64]", -256), ("int8[16]", 256), ("int4", 256)])
def test_what_no_segment_has_has_no_message(dtype: str, count: int) -> None:
    for of in (body_bytes, arrow_message_bytes, arrow_metadata):
        with pytest.raises(PieceError, match="known dtype and a multiple of 256"):
            of(dtype, count)


def test_another_protocol_version_is_refused() -> None:
    changed = bytearray(piece())
    struct.pack_into("<H", changed, 4, PROTOCOL + 1)
    with pytest.raises(ProtocolMismatch, match="protocol version 5, expected 4"):
        read(bytes(changed))


def test_every_single_changed_byte_is_noticed() -> None:
    original = piece()
    for position in [*range(HEADER_BYTES + 200), *random.Random(0).sample(range(len(original)), 100)]:
        changed = bytearray(original)
        changed[position] ^= 0x10
        with pytest.raises(TransportError):
            read(bytes(changed))


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_every_changed_bit_of_a_quantized_piece_is_noticed(dtype: str) -> None:
    original = quantized_piece(dtype)
    for position in range(len(original)):
        for bit in range(8):
            changed = bytearray(original)
            changed[position] ^= 1 << bit
            with pytest.raises(TransportError):
                decode_piece(bytes(changed), 0, 1, 512, dtype, 256)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_every_length_but_its_own_is_refused_of_a_quantized_piece(dtype: str) -> None:
    original = quantized_piece(dtype)
    for length in range(len(original)):
        with pytest.raises(PieceError, match="truncated"):
            decode_piece(original[:length], 0, 1, 512, dtype, 256)
    with pytest.raises(PieceError, match="padded"):
        decode_piece(original + bytes(8), 0, 1, 512, dtype, 256)


def test_every_length_but_its_own_is_refused() -> None:
    original = piece()
    for length in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(original) - 1]:
        with pytest.raises(PieceError, match="truncated"):
            read(original[:length])
    with pytest.raises(PieceError, match="padded"):
        read(original + b"\0")


@pytest.mark.parametrize(
    ("part", "segment", "first", "message"),
    [(1, 1, 512, "expected part 1"), (0, 0, 512, "segment 1"), (0, 1, 256, "elements 512 to 768 came")],
)
def test_a_piece_out_of_order_is_refused(part: int, segment: int, first: int, message: str) -> None:
    with pytest.raises(PieceError, match=message):
        decode_piece(piece(), part, segment, first, "float32", 256)


def test_a_piece_of_another_dtype_is_refused() -> None:
    with pytest.raises(PieceError, match="expected"):
        decode_piece(piece(), 0, 1, 512, "float64", 256)
    # As many bytes, but other counts in the metadata.
    with pytest.raises(PieceError, match="out of order"):
        decode_piece(encode_piece(0, 1, 512, "float32", 512, [bytes(2048)]), 0, 1, 512, "float64", 256)


@pytest.mark.parametrize("sent", QUANTIZED)
def test_a_piece_of_another_block_size_is_refused(sent: str) -> None:
    for other in DTYPES:
        if other != sent:
            # A block of 256 with its padding is as long as two of 128: there the metadata tells.
            with pytest.raises(PieceError, match=r"expected|canonical"):
                decode_piece(quantized_piece(sent), 0, 1, 512, other, 256)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_forged_metadata_is_refused_though_its_checksum_is_right(dtype: str) -> None:
    pieces = {"float32": piece(), dtype: quantized_piece(dtype)}
    for made, original in pieces.items():
        for position in range(HEADER_BYTES, HEADER_BYTES + len(arrow_metadata(made, 256))):
            with pytest.raises(PieceError, match="canonical"):
                decode_piece(changed_and_hashed(original, position), 0, 1, 512, made, 256)


def test_padding_that_is_not_zero_is_refused_though_its_checksum_is_right() -> None:
    codes, scales = codes_and_scales("int8[256]", 768)
    original = encode_piece(0, 0, 0, "int8[256]", 768, join_body("int8[256]", 768, [codes], [scales]))
    scales_end = len(original) - 768 - 4
    for position in range(scales_end, scales_end + 4):
        with pytest.raises(PieceError, match="not zero between its scales and its codes"):
            decode_piece(changed_and_hashed(original, position), 0, 0, 0, "int8[256]", 768)
    for position in (scales_end - 1, scales_end + 4):
        decode_piece(changed_and_hashed(original, position), 0, 0, 0, "int8[256]", 768)


@pytest.mark.parametrize("position", [10, *range(12, 16), *range(40, 56)])
def test_reserved_header_fields_are_zero(position: int) -> None:
    with pytest.raises(PieceError, match="out of order"):
        read(changed_and_hashed(piece(), position))
