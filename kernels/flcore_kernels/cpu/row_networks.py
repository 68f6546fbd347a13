"""Sorting networks over rows of keys, in vector registers.

A key is a signed integer in the order of its value, so one loop sorts floats and integers. Each function works on one
vector of columns, 64 bytes of keys: it loads a vector of each row, compares and exchanges vectors in registers, and
stores them. The networks are written as LLVM instructions, because Numba has no vectors: unrolled loops over scalars
would take minutes to compile.

With tags, each key has an integer of its own size that moves with it.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from flcore_kernels.cpu.memory import intrinsic
from flcore_kernels.cpu.vectors import pointer
from flcore_kernels.order_program import BLOCK_ROWS, comparators
from flcore_kernels.scratch import VECTOR_BYTES

Lane = tuple[Any, ...]
"""A vector of keys, and the vector of their tags if there are any."""


def sorting(bits: int, *, has_tags: bool) -> Any:
    """Return the function that sorts up to `BLOCK_ROWS` rows: `sort(address, rows, row bytes, tag bytes)`.

    `address` is that of the first row's vector; a tag is `tag bytes` behind its key.
    """
    kind = _vector(bits)

    @intrinsic
    def sort(typing: Any, address: Any, rows: Any, row_bytes: Any, tag_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, count, step, tag = arguments
            done = builder.append_basic_block("sorted")
            switch = builder.switch(count, done)
            for rows in range(2, BLOCK_ROWS + 1):
                block = builder.append_basic_block(f"sort{rows}")
                switch.add_case(ir.Constant(ir.IntType(64), rows), block)
                builder.position_at_end(block)
                places = [_places(builder, kind, _row(builder, start, step, row), tag, has_tags) for row in range(rows)]
                lanes = [_load(builder, place) for place in places]
                for one, other in comparators(rows):
                    lanes[one], lanes[other] = _exchange(builder, lanes[one], lanes[other])
                for lane, place in zip(lanes, places, strict=True):
                    _store(builder, lane, place)
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(types.uint64, types.int64, types.uint64, types.uint64), generate

    return sort


def merging(bits: int, *, has_tags: bool) -> Any:
    """Return the function that sorts a block whose rows ascend and then descend, or the other way round.

    `merge(address, row bytes, tag bytes)`, as `sort`.
    """
    kind = _vector(bits)

    @intrinsic
    def merge(typing: Any, address: Any, row_bytes: Any, tag_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, step, tag = arguments
            rows = [_row(builder, start, step, row) for row in range(BLOCK_ROWS)]
            places = [_places(builder, kind, row, tag, has_tags) for row in rows]
            lanes = [_load(builder, place) for place in places]
            distance = BLOCK_ROWS // 2
            while distance:
                for row in range(BLOCK_ROWS):
                    if not row & distance:
                        lanes[row], lanes[row + distance] = _exchange(builder, lanes[row], lanes[row + distance])
                distance //= 2
            for lane, place in zip(lanes, places, strict=True):
                _store(builder, lane, place)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return merge


def exchanging(bits: int, *, has_tags: bool) -> Any:
    """Return the function that moves the smaller keys of two rows into the first one.

    `exchange(address, other address, tag bytes)`.
    """
    kind = _vector(bits)

    @intrinsic
    def exchange(typing: Any, address: Any, other: Any, tag_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            places = [_places(builder, kind, start, arguments[2], has_tags) for start in arguments[:2]]
            lanes = _exchange(builder, *(_load(builder, place) for place in places))
            for lane, place in zip(lanes, places, strict=True):
                _store(builder, lane, place)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return exchange


def middle(bits: int) -> Any:
    """Return the function of the step `MIDDLE`: `middle(address, other address, row bytes)`."""
    kind = _vector(bits)

    @intrinsic
    def find(typing: Any, address: Any, other: Any, row_bytes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, second, step = arguments
            lower: Any = None
            upper: Any = None
            for row in range(BLOCK_ROWS):
                here = _row(builder, start, step, row)
                there = _row(builder, second, step, BLOCK_ROWS - 1 - row)
                low, high = _exchange(builder, *(_load(builder, [pointer(builder, kind, at)]) for at in (here, there)))
                lower = low if lower is None else _exchange(builder, lower, low)[1]
                upper = high if upper is None else _exchange(builder, upper, high)[0]
            _store(builder, lower, [pointer(builder, kind, _row(builder, start, step, BLOCK_ROWS - 1))])
            _store(builder, upper, [pointer(builder, kind, second)])
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64), generate

    return find


def keying(stored_bits: int, bits: int, mask: int, flip: int, *, is_signed: bool) -> Any:
    """Return the function that turns a vector of stored elements into keys: `to_keys(source, target)`.

    key = stored ^ (mask, where its sign is set) ^ flip. Narrow integers are widened to `bits` first.
    """
    kind = _vector(bits)
    stored = ir.VectorType(ir.IntType(stored_bits), kind.count)

    @intrinsic
    def to_keys(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(pointer(builder, stored, arguments[0]), align=1)
            if stored_bits < bits:
                value = (builder.sext if is_signed else builder.zext)(value, kind)
            builder.store(key_of(builder, value, mask, flip), pointer(builder, kind, arguments[1]), align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    return to_keys


def unkeying(stored_bits: int, bits: int, mask: int, flip: int) -> Any:
    """Return the function that turns a vector of keys back into stored elements: `from_keys(source, target)`."""
    kind = _vector(bits)
    stored = ir.VectorType(ir.IntType(stored_bits), kind.count)

    @intrinsic
    def from_keys(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(pointer(builder, kind, arguments[0]), align=1)
            # The sign decides before it is flipped; a flipped dtype has no mask.
            value = key_of(builder, value, mask, flip)
            if stored_bits < bits:
                value = builder.trunc(value, stored)
            builder.store(value, pointer(builder, stored, arguments[1]), align=1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    return from_keys


def key_of(builder: Any, value: Any, mask: int, flip: int) -> Any:
    """Return the keys of a vector of bits, or the bits of a vector of keys: the function is its own inverse."""
    kind = value.type
    if mask:
        sign = builder.ashr(value, _constant(kind, kind.element.width - 1))
        value = builder.xor(value, builder.and_(sign, _constant(kind, mask)))
    return builder.xor(value, _constant(kind, flip)) if flip else value


def _exchange(builder: Any, one: Lane, other: Lane) -> tuple[Lane, Lane]:
    """Return the smaller and the larger keys of two vectors, with their tags."""
    is_less = builder.icmp_signed("<", one[0], other[0])
    pairs = list(zip(one, other, strict=True))
    lower = tuple(builder.select(is_less, a, b) for a, b in pairs)
    return lower, tuple(builder.select(is_less, b, a) for a, b in pairs)


def _vector(bits: int) -> Any:
    return ir.VectorType(ir.IntType(bits), VECTOR_BYTES * 8 // bits)


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _row(builder: Any, start: Any, step: Any, row: int) -> Any:
    return builder.add(start, builder.mul(step, ir.Constant(ir.IntType(64), row)))


def _places(builder: Any, kind: Any, address: Any, tag_bytes: Any, has_tags: bool) -> list[Any]:
    keys = pointer(builder, kind, address)
    return [keys, pointer(builder, kind, builder.add(address, tag_bytes))] if has_tags else [keys]


def _load(builder: Any, places: Sequence[Any]) -> Lane:
    return tuple(builder.load(place, align=1) for place in places)


def _store(builder: Any, lane: Lane, places: Sequence[Any]) -> None:
    for value, place in zip(lane, places, strict=True):
        builder.store(value, place, align=1)
