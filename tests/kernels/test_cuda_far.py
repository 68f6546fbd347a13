"""Positions beyond 2^31 and 2^32: real kernels, told that what they work on lies there, as far from where it is."""

from typing import Any

import numpy as np
import pytest
from flcore_kernels.cuda import kernels as names
from flcore_kernels.cuda.launch import _ROWS

from tests.kernels.shim.compiled import EMULATED, launch, library

pytestmark = EMULATED

FAR = [2**31 - 64 * 3, 2**31, 2**32 + 128, 2**40]
"""Elements, at multiples of 64."""

SIZE = 200
NONE = np.uint64(2**64 - 1)


def address(array: Any, before: int = 0) -> np.uint64:
    """Return where an array would begin if it had so many bytes before its first."""
    return np.uint64((array.ctypes.data - before) % 2**64)


def run(kernel: str, *arguments: Any, first_block: int = 0) -> None:
    """Launch a block of threads; an array among the arguments stands for its address."""
    given = [address(each) if isinstance(each, np.ndarray) else each for each in arguments]
    launch(library(kernel), 1, names.THREADS, given, [], first_block)


def rows(operand: Any, start: int, weight: float = 1.0) -> Any:
    """Return `Rows` of one row of one operand, and what keeps its tables."""
    tables = [
        np.array([address(operand)]),
        np.array([operand.size]),
        np.array([start]),
        np.ones(1, np.uint8),
        np.array([weight]),
    ]
    places, counts, starts, aligned, weights = (address(table) for table in tables)
    told = np.array([(places, places, counts, starts, aligned, weights, 1, 1)], _ROWS).view(Kept)
    told.tables = tables
    return told


class Kept(np.ndarray[Any, Any]):
    """An array that keeps others."""

    tables: list[Any]


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize(("accumulate", "dtype"), [("float32", np.float32), ("float64", np.float64)])
def test_a_float_fold_far_out_lands_where_it_belongs(start: int, accumulate: str, dtype: Any) -> None:
    operand, total, bad = np.arange(SIZE, dtype=np.float32), np.ones(SIZE, dtype), np.full(2, NONE)
    operand[77] = np.inf
    run(
        *(names.fold_kernel("float32", accumulate), rows(operand, start, 2.0)),
        *(address(total, start * total.itemsize), np.uint64(0), bad),
    )
    assert total.tolist() == (1 + 2 * operand.astype(dtype)).tolist()
    assert bad[0] == start + 77


@pytest.mark.parametrize("start", FAR)
def test_an_exact_fold_finish_and_merge_far_out_land_where_they_belong(start: int) -> None:
    operand, blocks = np.arange(SIZE, dtype=np.float32), -(-SIZE // 64)
    totals = [(np.zeros(128 * blocks, np.int64), np.full(blocks, -32768, np.int16)) for _ in range(2)]
    bad = np.full(2, NONE)
    for digits, levels in totals:
        run(
            *(names.fold_kernel("float32", "exact"), rows(operand, start)),
            *(address(digits, start * 16), address(levels, start // 64 * 2), bad),
        )
    # Merging begins at block 0, so that the launch's blocks of threads have to be far out.
    places = [(address(digits, start * 16), address(levels, start // 64 * 2)) for digits, levels in totals]
    end, first_block = np.int64(start // 64 + blocks), start // 64 // 16
    if start // 64 % 16 == 0:
        run(names.merge_kernel("exact"), *places[0], *places[1], end, first_block=first_block)
    else:
        totals[0][0][:] *= 2
    divisor = np.zeros(1, [("nearest", "f8"), ("rest", "f8"), ("limbs", "u8", 4), ("exponent", "i8")])
    divisor[0] = (2.0, 0.0, (1, 0, 0, 0), 1)
    out = np.zeros(SIZE, np.float32)
    run(
        *(names.finish_kernel("exact", "float32", False), rows(operand, start), *places[0]),
        *(np.array([address(out)]), np.array([address(out)]), divisor, bad),
    )
    assert out.tolist() == operand.tolist()
    assert bad[0] == NONE


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize("dtype", ["float32", "int8[32]"])
def test_a_bad_element_far_out_is_found_where_it_is(start: int, dtype: str) -> None:
    block = 32 if "[" in dtype else 0
    operand = np.full(5000, -3, np.int8 if block else np.float32)
    scales = np.ones(-(-operand.size // 32), np.float32)
    (scales if block else operand)[[130, 140] if block else [4200, 4300]] = np.nan
    told = rows(operand, start)
    told.tables.append(np.array([address(scales)]))
    told["scales"] = address(told.tables[-1])
    tops, bad = np.zeros(1, np.uint64), np.full(1, NONE)
    run(names.max_abs_kernel(dtype), told, tops, bad)
    assert tops.view(np.float64) == [3.0] and bad == [start + (4160 if block else 4200)]


@pytest.mark.parametrize("first_block", [2**21, 2**23 + 5, 2**30])
def test_threads_far_out_convert_what_is_theirs(first_block: int) -> None:
    values = np.linspace(-3, 3, 1024).astype(np.float32)
    halves, back, codes, scales = (np.zeros(1024, t) for t in (np.uint16, np.float32, np.int8, np.float32))
    first = first_block * 256 * 4
    end = np.int64(first + 1000)
    run(
        names.encode_kernel("float16"),
        address(values, 4 * first),
        address(halves, 2 * first),
        end,
        first_block=first_block,
    )
    assert np.array_equal(halves.view(np.float16)[:1000], values.astype(np.float16)[:1000])
    assert not halves[1000:].any()
    first = first_block * 256 * 8
    decode = names.decode_kernel("float16")
    end = np.int64(first + 1000)
    run(decode, address(halves, 2 * first), halves, address(back, 4 * first), end, first_block=first_block)
    assert np.array_equal(back[:1000], halves.view(np.float16)[:1000].astype(np.float32))
    first, bad = first_block * 8 * 32, np.array([NONE])
    values[60] = np.nan
    places = address(values, 4 * first), address(codes, first), address(scales, first // 32 * 4)
    run(names.quantize_kernel(32), *places, np.int64(first + 250), bad, first_block=first_block)
    assert bad[0] == first + 32 and scales[0] > 0 and codes[1] == np.rint(values[1] / scales[0])


def test_merged_floats_far_out_are_added_once() -> None:
    one, other = np.ones(1000, np.float32), np.full(1000, 3.0, np.float32)
    first = 2**22 * 1024
    places = address(one, 4 * first), address(other, 4 * first)
    run(names.merge_kernel("float32"), *places, np.int64(first + 1000), np.int32(-1), first_block=2**22)
    assert one.tolist() == [2.5] * 1000
