"""One piece, to the byte: golden file, Arrow's view of it, and everything that is refused."""

import random
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from flcore_transport import PROTOCOL, WIRE_DTYPES, PieceError, ProtocolMismatch, TransportError, schema_message
from flcore_transport.framing import HASH, HEADER, HEADER_BYTES, MAX_PIECE_BYTES, decode, encode, metadata

GOLDEN = Path(__file__).parent / "golden" / "piece-v1.bin"
BODY = np.arange(256, dtype=np.float32)


def piece() -> bytes:
    return encode(0, 1, 512, "float32", [BODY[:100].data, BODY[100:].data])


def read(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(decode(data, 0, 1, 512, "float32", 256), np.float32)


def test_the_wire_form_is_the_golden_file() -> None:
    assert PROTOCOL == 1, "the wire has changed: add a golden file for the new version, and keep this one"
    assert piece() == GOLDEN.read_bytes()


def test_a_piece_comes_back_as_a_view_of_its_bytes() -> None:
    data = piece()
    assert np.array_equal(read(data), BODY)
    assert np.shares_memory(read(data), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_arrow_reads_a_segment_as_a_stream(dtype: str) -> None:
    body = bytes(range(256)) * WIRE_DTYPES[dtype]
    pieces = [encode(0, 0, first, dtype, [body]) for first in (0, 256)]
    stream = schema_message(dtype) + b"".join(data[HEADER_BYTES:] for data in pieces)
    with pa.ipc.open_stream(stream + b"\xff\xff\xff\xff\0\0\0\0") as reader:
        column = reader.read_all()["value"]
    assert column.null_count == 0
    assert b"".join(chunk.buffers()[1].to_pybytes()[: len(body)] for chunk in column.chunks) == body * 2


@pytest.mark.parametrize(("dtype", "count"), [("float64", 256), ("float32", 524_288), ("int8", 2_097_152)])
def test_our_metadata_is_what_arrow_writes(dtype: str, count: int) -> None:
    field = pa.field("value", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False)
    batch = pa.record_batch([pa.array(np.zeros(count, dtype))], pa.schema([field]))
    assert batch.serialize().to_pybytes().startswith(metadata(count, np.dtype(dtype).itemsize))


def test_a_full_piece_fits_the_limit_of_a_message() -> None:
    from flcore_transport import PIECE_BODY_BYTES

    assert len(encode(0, 0, 0, "float32", [bytes(PIECE_BODY_BYTES)])) <= MAX_PIECE_BYTES


def test_another_protocol_version_is_refused() -> None:
    changed = bytearray(piece())
    struct.pack_into("<H", changed, 4, PROTOCOL + 1)
    with pytest.raises(ProtocolMismatch, match="protocol version 2, expected 1"):
        read(bytes(changed))


def test_every_single_changed_byte_is_noticed() -> None:
    original = piece()
    for position in [*range(HEADER_BYTES + 200), *random.Random(0).sample(range(len(original)), 100)]:
        changed = bytearray(original)
        changed[position] ^= 0x10
        with pytest.raises(TransportError):
            read(bytes(changed))


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
        decode(piece(), part, segment, first, "float32", 256)


def test_a_piece_of_another_dtype_is_refused() -> None:
    with pytest.raises(PieceError, match="expected"):
        decode(piece(), 0, 1, 512, "float64", 256)
    # As many bytes, but other counts in the metadata.
    with pytest.raises(PieceError, match="out of order"):
        decode(piece(), 0, 1, 512, "float64", 128)


def test_metadata_that_a_stranger_made_up_is_refused_though_its_hash_is_right() -> None:
    import xxhash

    changed = bytearray(piece())
    changed[HEADER_BYTES + 80] ^= 1  # a flatbuffer offset
    digest = xxhash.xxh3_64(bytes(changed[: HEADER.size]) + bytes(changed[HEADER_BYTES:])).intdigest()
    HASH.pack_into(changed, HEADER.size, digest)
    with pytest.raises(PieceError, match="canonical"):
        read(bytes(changed))
