"""LLVM instructions over vectors, for what Numba has no vectors for. Addresses are integers of 64 bits."""

from collections.abc import Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir

from flcore_kernels.cpu.memory import get_or_insert_function

NUMBER = ir.IntType(64)


def has_wide_registers() -> bool:
    """Return whether this processor has 32 registers of 512 bits (AVX-512)."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


def at(builder: Any, address: Any, offset: int) -> Any:
    """Return an address plus a number of bytes."""
    return builder.add(address, ir.Constant(NUMBER, offset)) if offset else address


def pointer(builder: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    """Return a pointer to a value of a kind."""
    return builder.inttoptr(at(builder, address, offset), kind.as_pointer())


def load(builder: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    """Return the value at an address, which may be any."""
    return builder.load(pointer(builder, kind, address, offset), align=1)


def store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    """Write a value to an address, which may be any."""
    builder.store(value, pointer(builder, value.type, address, offset), align=1)


def splat(builder: Any, kind: Any, value: Any) -> Any:
    """Return a vector of one value in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, lanes([0] * kind.count))


def lanes(numbers: Sequence[int]) -> Any:
    """Return the mask of a shuffle: the lane that each lane of the result comes from."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), list(numbers))


def call(builder: Any, name: str, arguments: Sequence[Any]) -> Any:
    """Return the result of LLVM's function of a name, such as `floor`, over vectors of floats of one kind."""
    kind = arguments[0].type
    element = "f32" if kind.element == ir.FloatType() else "f64"
    function = ir.FunctionType(kind, [kind] * len(arguments))
    called = get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}{element}")
    return builder.call(called, arguments)
