"""`mix`: every dtype against the oracle, in the order of the operands."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import BufferMismatch, TooManyTerms, mix, storage_dtype

from tests.kernels.cases import at_odd_address
from tests.reference import DTYPES, FLOATS, ORDERED

Array = npt.NDArray[Any]


def drawn(count: int, size: int, dtype: str) -> list[Array]:
    rng = np.random.default_rng(count)
    if dtype in FLOATS:
        return [rng.standard_normal(size).astype(DTYPES[dtype]).view(storage_dtype(dtype)) for _ in range(count)]
    return [rng.integers(0, 2 if dtype == "bool" else 100, size).astype(storage_dtype(dtype)) for _ in range(count)]


def wide(dtype: str) -> str:
    return "float32" if dtype in FLOATS and dtype != "float64" else "float64"


def mixed(operands: list[Array], shares: npt.NDArray[np.float64], dtype: str, **options: Any) -> list[Array]:
    outs = [np.empty(operands[0].size, wide(dtype)) for _ in shares]
    mix(operands, shares, outs, dtype, **options)
    return outs


@pytest.mark.parametrize("dtype", [*ORDERED, "bool"])
def test_sums_are_those_of_the_oracle(dtype: str) -> None:
    for count, sums, size in ((1, 1, 1), (3, 5, 127), (4, 4, 128), (9, 2, 129), (33, 33, 1000), (2, 1, 70_001)):
        operands = drawn(count, size, dtype)
        shares = np.random.default_rng(sums).random((sums, count))
        values = np.stack([each.view(DTYPES[dtype]).astype(np.float64) for each in operands])
        for out, row in zip(mixed(operands, shares, dtype), shares, strict=True):
            magnitude = np.abs(row[:, None] * values).sum(axis=0)
            assert (np.abs(out - row @ values) <= (2**-23 if out.dtype == np.float32 else 2**-50) * magnitude).all()


def test_a_share_of_one_gives_the_operand_bit_for_bit() -> None:
    operands = drawn(5, 3000, "float32")
    operands[2][:4] = -0.0
    for out, operand in zip(mixed(operands, np.eye(5)[[2, 0]], "float32"), (operands[2], operands[0]), strict=True):
        assert (out == operand).all()
    assert np.signbit(mixed([operands[2]], np.ones((1, 1)), "float32")[0][:4]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_the_mean_of_equal_operands_is_their_value(dtype: str) -> None:
    values = drawn(1, 999, dtype)[0]
    shares = np.array([[1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7], [1e-9, 0.3, 0.7 - 1e-9]])
    for out in mixed([values, values.copy(), values.copy()], shares, dtype):
        assert (out == values).all()


def test_a_mean_with_zeros_is_between_the_operands_and_zero_and_other_sums_are_free() -> None:
    ones = np.ones(300, np.float64)
    half, sum_of_both, difference = mixed([ones, ones], np.array([[0.25, 0.25], [1.0, 1.0], [1.0, -1.0]]), "float64")
    assert (half == 0.5).all() and (sum_of_both == 2.0).all() and (difference == 0.0).all()


def test_neither_threads_nor_ranges_nor_addresses_change_a_bit() -> None:
    operands, shares = drawn(7, 1_000_003, "float32"), np.random.default_rng(1).random((6, 7))
    whole = mixed(operands, shares, "float32", threads=1)
    for out, other in zip(mixed(operands, shares, "float32", threads=3), whole, strict=True):
        assert (out == other).all()
    part = mixed([at_odd_address(operand[777:5000]) for operand in operands], shares, "float32")
    assert all((out == other[777:5000]).all() for out, other in zip(part, whole, strict=True))


def test_no_sums_and_no_elements_are_fine() -> None:
    mix([np.ones(3, np.float32)], np.zeros((0, 1)), [], "float32")
    assert mixed([np.zeros(0, np.float32)], np.ones((1, 1)), "float32")[0].size == 0


def test_wrong_calls_are_refused() -> None:
    ones, out = np.ones(4, np.float32), np.empty(4, np.float32)
    for operands, shares, outs, dtype, expected in (
        ([ones], np.ones((1, 2)), [out], "float32", r"shares: expected finite numbers of shape \(1, 1\)"),
        ([ones], np.full((1, 1), np.nan), [out], "float32", "shares: expected finite numbers"),
        ([ones, ones[:3].copy()], np.ones((1, 2)), [out], "float32", "operand 1: expected a contiguous buffer of 4"),
        ([ones], np.ones((1, 1)), [out[:2]], "float32", "out 0: expected a contiguous buffer of 4"),
        ([ones], np.ones((1, 1)), [np.empty(4, np.int32)], "float32", "out: expected float32 or float64, got int32"),
        ([ones], np.ones((1, 1)), [out], "int8[256]", "quantized operands .* cannot be mixed: decode them first"),
    ):
        with pytest.raises(BufferMismatch, match=expected):
            mix(operands, shares, outs, dtype)
    with pytest.raises(TooManyTerms):
        mix([], np.ones((1, 0)), [out], "float32")
    out.flags.writeable = False
    with pytest.raises(BufferMismatch, match="expected a writable buffer"):
        mix([ones], np.ones((1, 1)), [out], "float32")
