"""A segment's schema, written without pyarrow and read by it."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from flcore_layout import DTYPES
from flcore_transport import PieceError
from flcore_transport.piece_format import arrow_schema_message

STORAGE = {"bfloat16": "uint16", "bool": "uint8"}


def expected(dtype: str) -> pa.Schema:
    named = {"flcore.dtype": dtype}
    if block := DTYPES[dtype].block:
        items = pa.list_(pa.field("item", pa.int8(), nullable=False), block)
        scale = pa.field("scale", pa.float32(), nullable=False)
        return pa.schema([scale, pa.field("codes", items, nullable=False, metadata=named)])
    number = pa.from_numpy_dtype(np.dtype(STORAGE.get(dtype, dtype)))
    return pa.schema([pa.field("value", number, nullable=False, metadata=named)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrow_reads_the_schema_that_it_would_have_written(dtype: str) -> None:
    ours = pa.ipc.read_schema(pa.BufferReader(arrow_schema_message(dtype)))
    theirs = pa.ipc.read_schema(pa.BufferReader(expected(dtype).serialize()))
    assert ours.equals(theirs, check_metadata=True)
    assert ours.equals(expected(dtype), check_metadata=True)
    for field in ours:
        assert not field.nullable
        if pa.types.is_fixed_size_list(field.type):
            assert field.type.value_field.equals(pa.field("item", pa.int8(), nullable=False), check_metadata=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_schema_message_is_a_whole_number_of_8_bytes_and_says_its_length(dtype: str) -> None:
    message = arrow_schema_message(dtype)
    assert len(message) % 8 == 0
    assert struct.unpack_from("<Ii", message) == (-1 % 2**32, len(message) - 8)
    read = pa.ipc.read_message(message)
    assert (read.type, read.metadata_version) == ("schema", pa.ipc.MetadataVersion.V5)


def test_an_unknown_dtype_has_no_schema() -> None:
    with pytest.raises(PieceError, match="a segment has a known dtype"):
        arrow_schema_message("int4")
