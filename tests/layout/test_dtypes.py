"""The one table of dtypes: each row is complete, and every table that is derived from it has each row."""

import typing

import flcore_layout
import ml_dtypes
import numpy as np
import pytest
from flcore_kernels import STORAGE, KernelError
from flcore_kernels.cpu.decode import DECODERS
from flcore_kernels.cpu.encode import ENCODERS
from flcore_kernels.cuda.kernels import operand_type, result_type, source
from flcore_layout import ALIGNMENT, DTYPES, Dtype, FlcoreError, UnknownDtypeName, aligned, canonical_name
from flcore_transport import TransportError
from flcore_transport.messages import wire_dtype

import flcore
from flcore.job.contract import WireContract
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.safetensors_header import DTYPE_NAMES

ROWS = list(DTYPES.values())
PLAIN = [row for row in ROWS if not row.is_quantized]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_complete(row: Dtype) -> None:
    assert DTYPES[row.name] is row
    assert np.dtype(row.storage).itemsize == row.itemsize
    assert (row.exponent_bits > 0) == (row.mantissa_bits > 0) == row.is_float
    if row.is_float:
        assert 1 + row.exponent_bits + row.mantissa_bits == 8 * row.itemsize
        finfo: typing.Any = ml_dtypes.finfo
        limits = finfo(NUMPY_DTYPES[row.name])
        assert (limits.nexp, limits.nmant) == (row.exponent_bits, row.mantissa_bits)
    if row.is_quantized:
        assert ALIGNMENT % row.block == 0 and row.storage == "int8"
    assert bool(row.safetensors) == bool(row.arrow) == (not row.is_quantized)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_table_has_each_row(row: Dtype) -> None:
    assert wire_dtype(row.name) is row
    assert (STORAGE[row.name].dtype, STORAGE[row.name].block) == (np.dtype(row.storage), row.block)
    assert DECODERS[row.name].bytes == row.itemsize
    assert f"struct {operand_type(row.name).partition('<')[0]} :" in source()
    if row.is_quantized:
        return
    assert ENCODERS[row.name].bytes == row.itemsize
    assert f"struct {result_type(row.name).partition('<')[0]} :" in source()
    assert NUMPY_DTYPES[row.name].itemsize == row.itemsize
    assert DTYPE_NAMES[row.safetensors] == row.name


def test_no_table_has_rows_of_its_own() -> None:
    assert set(DTYPES) == set(STORAGE) == set(DECODERS)
    plain = {row.name for row in PLAIN}
    assert plain == set(NUMPY_DTYPES) == set(ENCODERS) == set(DTYPE_NAMES.values())


def test_a_job_may_ask_for_the_dtypes_that_float32_is_encoded_as() -> None:
    def choices(field: str) -> set[str]:
        return set(typing.get_args(typing.get_args(WireContract.model_fields[field].annotation)[0]))

    narrow = {row.name for row in ROWS if row.compresses_float32}
    assert choices("upload") == narrow
    assert choices("download") == {name for name in narrow if not DTYPES[name].is_quantized}


def test_names_and_aliases_are_unambiguous() -> None:
    written = [name for row in ROWS for name in (row.name, *row.aliases)]
    assert len(set(written)) == len(written)
    assert [canonical_name(alias) for alias in ("bf16", "f32", "i8", "bfloat16")] == [
        "bfloat16",
        "float32",
        "int8",
        "bfloat16",
    ]
    with pytest.raises(UnknownDtypeName, match="expected a dtype, got 'float8'; use one of float64, "):
        canonical_name("float8")


def test_elements_are_aligned_upwards() -> None:
    assert [aligned(elements) for elements in (0, 1, 255, 256, 257)] == [0, 256, 256, 256, 512]


def test_all_errors_have_one_root() -> None:
    assert flcore.FlcoreError is FlcoreError is flcore_layout.FlcoreError
    for root in (KernelError, TransportError, UnknownDtypeName, flcore.SpecError):
        assert issubclass(root, FlcoreError)
