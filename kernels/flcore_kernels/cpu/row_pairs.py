"""Squared distances of 4 rows to 4 rows, in vector registers, and their sums as digits.

Written as LLVM instructions, because Numba has no vectors: 16 sums stay in registers while 8 rows are read once. Every
function takes addresses. A row is one block: `BLOCK` elements of one type.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from flcore_kernels.cpu.memory import intrinsic
from flcore_kernels.cpu.vectors import call, has_wide_registers, lanes, load, splat, store
from flcore_kernels.digit_sums import DIGIT_BITS, DIGITS

BLOCK = 256
"""Elements of a block, whose squares are summed before anything else is added."""

GROUP = 4
"""Rows of a group. Two groups have 16 sums: with 8 rows of one vector, they fill the 32 registers of AVX-512."""

PAIRS = GROUP * GROUP
"""Sums of two groups, in the order of the first group's rows."""

_DOUBLES, _EIGHT = ir.VectorType(ir.DoubleType(), PAIRS), ir.VectorType(ir.DoubleType(), 8)


def pair_sums(bits: int) -> Any:
    """Return the function that writes 16 float64 sums of squared differences: `sums(rows, other rows, out)`.

    Rows follow each other. A difference and its square are rounded to float32 (`bits` is 32) or float64 (64), and so is
    the sum of each of 16 or 8 lanes; the lanes are added in float64. So a sum of float32 has a relative error of at
    most (2 + 15) · 2^-24, and is typically right to 1e-7.
    """
    real = ir.FloatType() if bits == 32 else ir.DoubleType()
    count = 512 // bits
    # Shorter registers take the lanes in parts, and fewer columns at once: a lane's sum is the same.
    width, columns = (count, GROUP) if has_wide_registers() else (count // 2, GROUP // 2)

    @intrinsic
    def sums(typing: Any, rows: Any, others: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, right, target = arguments
            kind = ir.VectorType(real, width)
            totals: list[Any] = [None] * PAIRS
            for first in range(0, GROUP, columns):
                found = [
                    _partial_sums(builder, kind, (left, right), bits, (first, columns), part)
                    for part in range(count // width)
                ]
                for index, parts in enumerate(zip(*found, strict=True)):
                    place = (index // columns) * GROUP + first + index % columns
                    totals[place] = _eight_doubles(builder, parts)
            for half, eight in enumerate((totals[:8], totals[8:])):
                store(builder, _sums_of_lanes(builder, eight), target, 64 * half)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return sums


def _partial_sums(builder: Any, kind: Any, rows: Any, bits: int, columns: tuple[int, int], part: int) -> list[Any]:
    """Return vectors of sums over a block: 4 rows by some columns, in one part of the lanes."""
    first, count = columns
    row_bytes, element_bytes, step = BLOCK * bits // 8, bits // 8, 512 // bits
    found = [ir.Constant(kind, [0.0] * kind.count)] * (GROUP * count)
    for start in range(part * kind.count, BLOCK, step):
        offset = start * element_bytes
        here = [load(builder, kind, rows[0], row * row_bytes + offset) for row in range(GROUP)]
        for column in range(count):
            there = load(builder, kind, rows[1], (first + column) * row_bytes + offset)
            for row in range(GROUP):
                difference = builder.fsub(here[row], there)
                index = row * count + column
                found[index] = call(builder, "fmuladd", [difference, difference, found[index]])
    return found


def _eight_doubles(builder: Any, parts: Sequence[Any]) -> Any:
    """Return 16 lanes of float32, or 8 of float64, as 8 of float64: lanes i and i + 8 of float32 are added."""
    if parts[0].type.element == ir.DoubleType():
        return parts[0] if len(parts) == 1 else builder.shuffle_vector(*parts, lanes(range(8)))
    if len(parts) == 1:
        parts = [_shuffled(builder, parts[0], range(first, first + 8)) for first in (0, 8)]
    return builder.fadd(*(builder.fpext(part, _EIGHT) for part in parts))


def _sums_of_lanes(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector of the sums of the lanes of 8 vectors."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(*(builder.shuffle_vector(*pair, lanes(range(parity, 16, 2))) for parity in (0, 1)))
            for pair in pairs
        ]
    return vectors[0]


def _shuffled(builder: Any, value: Any, numbers: range) -> Any:
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes(numbers))


@intrinsic
def outside(typing: Any, values: Any, scales: Any, low: Any, high: Any) -> Any:
    """Return 1 bit for each of 16 values that is not within [low, high], or whose first digit would overflow."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, scale = (load(builder, _DOUBLES, address) for address in arguments[:2])
        lowest, highest = (splat(builder, _DOUBLES, limit) for limit in arguments[2:])
        # "Not ordered and within": a NaN is outside.
        is_low = builder.fcmp_unordered("<", value, lowest)
        is_high = builder.fcmp_unordered(">", value, highest)
        scaled = builder.fmul(value, scale)
        is_long = builder.fcmp_unordered(">=", scaled, ir.Constant(_DOUBLES, [2.0**DIGIT_BITS] * PAIRS))
        bits = builder.bitcast(builder.or_(builder.or_(is_low, is_high), is_long), ir.IntType(PAIRS))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(types.uint64, types.uint64, types.float64, types.float64), generate


@intrinsic
def add_digits(typing: Any, values: Any, scales: Any, digits: Any, step: Any) -> Any:
    """Add 16 values to three vectors of digits, `step` bytes apart. A value times its scale is below 2^32.

    What is below the third digit is cut off: so a sum depends on which values it has, and not on their order.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        radix = ir.Constant(_DOUBLES, [2.0**DIGIT_BITS] * PAIRS)
        value, scale = (load(builder, _DOUBLES, address) for address in arguments[:2])
        left, place = builder.fmul(value, scale), arguments[2]
        for digit in range(DIGITS):
            whole = call(builder, "floor", [left])
            store(builder, builder.fadd(load(builder, _DOUBLES, place), whole), place)
            if digit < DIGITS - 1:
                left, place = builder.fmul(builder.fsub(left, whole), radix), builder.add(place, arguments[3])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, types.uint64), generate
