"""How compiled loops access memory: typed loads and stores at an address, and hints to the processor.

A kernel gets its buffers as addresses, because one call serves any number of operands. Loads and stores assume no
alignment, so mapped files and slices of received messages are read in place (zero-copy).

`load_*` reads operands: memory that the same loop does not write. `peek_*` reads memory that the loop also writes with
`store_*`, such as a total. LLVM's alias metadata says that a `load_*` and a `store_*` never overlap, so that it
vectorises a loop without checking addresses at run time. Between `peek_*` and `store_*`, LLVM assumes that they may.
`put_*` writes what a `load_*` of the same kernel reads later: LLVM assumes nothing about it.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

intrinsic = cast("Callable[..., Any]", numba_intrinsic)

get_or_insert_function = cast("Callable[..., Any]", cgutils.get_or_insert_function)

_IR = {
    types.int8: ir.IntType(8),
    types.uint8: ir.IntType(8),
    types.int16: ir.IntType(16),
    types.uint16: ir.IntType(16),
    types.int32: ir.IntType(32),
    types.uint32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.uint64: ir.IntType(64),
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
}


def _scope(module: Any) -> Any:
    domain = module.add_metadata([ir.MetaDataString(module, "flcore")])
    return module.add_metadata([module.add_metadata([ir.MetaDataString(module, "flcore.parts"), domain])])


def _place(builder: Any, kind: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


def _load(numba_type: Any, scope_role: str) -> Callable[..., Any]:
    kind = _IR[numba_type]

    @intrinsic
    def load(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load(_place(builder, kind, *arguments), align=1)
            value.set_metadata(scope_role, _scope(builder.module))
            return value

        return numba_type(types.uint64, types.int64), generate

    return cast("Callable[..., Any]", load)


def _store(numba_type: Any, *, overlaps_loads: bool = False) -> Callable[..., Any]:
    kind = _IR[numba_type]

    @intrinsic
    def store(typing: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            instruction = builder.store(arguments[2], _place(builder, kind, *arguments[:2]), align=1)
            if not overlaps_loads:
                instruction.set_metadata("noalias", _scope(builder.module))
            return context.get_dummy_value()

        return types.void(types.uint64, types.int64, numba_type), generate

    return cast("Callable[..., Any]", store)


def _same_bits(source: Any, target: Any) -> Callable[..., Any]:
    kind = _IR[target]

    @intrinsic
    def same_bits(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], kind)

        return target(source), generate

    return cast("Callable[..., Any]", same_bits)


f64_bits, f64_of = _same_bits(types.float64, types.int64), _same_bits(types.int64, types.float64)
f32_bits, f32_of = _same_bits(types.float32, types.uint32), _same_bits(types.uint32, types.float32)

load_i8, load_u8 = _load(types.int8, "alias.scope"), _load(types.uint8, "alias.scope")
load_i16, load_u16 = _load(types.int16, "alias.scope"), _load(types.uint16, "alias.scope")
load_i32, load_u32 = _load(types.int32, "alias.scope"), _load(types.uint32, "alias.scope")
load_i64, load_u64 = _load(types.int64, "alias.scope"), _load(types.uint64, "alias.scope")
load_f32, load_f64 = _load(types.float32, "alias.scope"), _load(types.float64, "alias.scope")

peek_f32, peek_f64 = _load(types.float32, "noalias"), _load(types.float64, "noalias")
peek_i64, peek_u8 = _load(types.int64, "noalias"), _load(types.uint8, "noalias")

store_i8, store_u8 = _store(types.int8), _store(types.uint8)
store_i16, store_u16 = _store(types.int16), _store(types.uint16)
store_i32, store_u32 = _store(types.int32), _store(types.uint32)
store_i64, store_u64 = _store(types.int64), _store(types.uint64)
store_f32, store_f64 = _store(types.float32), _store(types.float64)

put_i8, put_i16 = _store(types.int8, overlaps_loads=True), _store(types.int16, overlaps_loads=True)
put_i32, put_i64 = _store(types.int32, overlaps_loads=True), _store(types.int64, overlaps_loads=True)


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Prefetch the cache line at an address, which need not be mapped.

    Into the second-level cache (locality 2): the first level is too small for lines that are needed some KiB later.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        called = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # Arguments: address, 0 for a read, locality 2, 1 for data. A prefetch beyond a buffer's end does not fault.
        builder.call(called, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def stream_16(typing: Any, target: Any, source: Any) -> Any:
    """Copy 16 bytes with a non-temporal store; `target` is a multiple of 16.

    16 bytes are the widest store that every x86-64 and ARM64 processor has. A large result is not read again soon.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), 4).as_pointer()
        value = builder.load(builder.inttoptr(arguments[1], kind), align=1)
        instruction = builder.store(value, builder.inttoptr(arguments[0], kind), align=16)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


@intrinsic
def half_to_f32(typing: Any, bits: Any) -> Any:
    """The value of a float16's bits, by the processor's instruction (x86: F16C)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def f32_to_half(typing: Any, value: Any) -> Any:
    """The float16 bits of a value, rounded to nearest even, by the processor's instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate
