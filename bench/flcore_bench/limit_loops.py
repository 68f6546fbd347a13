"""The loops that measure the machine's limit: read every byte of some buffers, and write every byte of another.

A limit loop must be at least as fast as everything that is compared with it. So it computes almost nothing (an integer
maximum is one instruction per vector), and uses every technique that a fold may use: tiles, several buffers at once,
prefetching, non-temporal stores. Each buffer is cut into the same number of *tiles*, so a shorter source (scales next
to codes) is read in step with the others.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64
"""Bytes of a cache line. All counts below are in lines."""

STEP = 32
"""Lines per run of prefetches, which is also the prefetch distance: half a page."""

_WORDS = LINE // 4
_OPTIONS: Any = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
_intrinsic: Callable[..., Any] = intrinsic
_function: Callable[..., Any] = cgutils.get_or_insert_function  # type: ignore[assignment, unused-ignore]


def _inlined(function: Callable[..., Any]) -> Any:
    return njit(**_OPTIONS, forceinline=True)(function)


@_intrinsic
def _word(_typing: Any, _address: Any, _index: Any) -> Any:
    """The uint32 at an address and an index, aligned or not."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(32).as_pointer()
        return builder.load(builder.gep(builder.inttoptr(arguments[0], kind), [arguments[1]]), align=1)

    return types.uint32(types.uint64, types.int64), generate


def _line_store(is_nontemporal: bool) -> Any:
    @_intrinsic
    def store(_typing: Any, _address: Any) -> Any:
        """Write a line of zeros; `address` is a multiple of 64."""

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(ir.IntType(32), _WORDS)
            instruction = builder.store(
                ir.Constant(kind, [0] * _WORDS), builder.inttoptr(arguments[0], kind.as_pointer()), align=LINE
            )
            if is_nontemporal:
                one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                instruction.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.void(types.uint64), generate

    return store


_store, _store_nontemporal = _line_store(is_nontemporal=False), _line_store(is_nontemporal=True)


@_intrinsic
def _prefetch(_typing: Any, _address: Any) -> Any:
    """Prefetch the line at an address into the second-level cache."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        call = _function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, [builder.inttoptr(arguments[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@_inlined
def _prefetch_lines(address: Any, lines: Any) -> Any:
    for i in range(lines):
        _prefetch(address + np.uint64((i + STEP) * LINE))


@_inlined
def _read_one(address: Any, lines: Any) -> Any:
    most = np.uint32(0)
    for i in range(lines * _WORDS):
        most = max(most, _word(address, i))
    return most


@_inlined
def _read_four(a: Any, b: Any, c: Any, d: Any, lines: Any) -> Any:
    most, more = np.uint32(0), np.uint32(0)
    for i in range(lines * _WORDS):
        most = max(most, max(_word(a, i), _word(b, i)))
        more = max(more, max(_word(c, i), _word(d, i)))
    return max(most, more)


@_inlined
def _one_at_a_time(address: Any, lines: Any, step: Any) -> Any:
    most = np.uint32(0)
    for at in range(0, lines, step):
        here = address + np.uint64(at * LINE)
        count = min(step, lines - at)
        if step == STEP:
            _prefetch_lines(here, count)
        most = max(most, _read_one(here, count))
    return most


@_inlined
def _four_at_a_time(a: Any, b: Any, c: Any, d: Any, lines: Any, step: Any) -> Any:
    most = np.uint32(0)
    for at in range(0, lines, step):
        along = np.uint64(at * LINE)
        count = min(step, lines - at)
        if step == STEP:
            _prefetch_lines(a + along, count)
            _prefetch_lines(b + along, count)
            _prefetch_lines(c + along, count)
            _prefetch_lines(d + along, count)
        most = max(most, _read_four(a + along, b + along, c + along, d + along, count))
    return most


@_inlined
def _write(address: Any, lines: Any, is_nontemporal: Any) -> None:
    if is_nontemporal:
        for i in range(lines):
            _store_nontemporal(address + np.uint64(i * LINE))
    else:
        for i in range(lines):
            _store(address + np.uint64(i * LINE))


@njit(
    types.uint32(
        *(types.Array(types.uint64, 1, "C"), types.Array(types.int64, 1, "C"), types.uint64, types.int64),
        *(types.int64, types.int64, types.int64, types.int64, types.boolean, types.boolean),
    ),
    **_OPTIONS,
)
def read_and_write(
    sources: Any,
    lines: Any,
    target: Any,
    target_lines: Any,
    first: Any,
    last: Any,
    tiles: Any,
    buffers_at_once: Any,
    is_prefetched: Any,
    is_nontemporal: Any,
) -> Any:
    """Read tiles `first` to `last` (of `tiles`) of the sources, 1 or 4 buffers at once; write those of the target.

    Returns the largest word read, so that the compiler cannot eliminate the reads.
    """
    most = np.uint32(0)
    for tile in range(first, last):
        k = 0
        while k < sources.size:
            low, high = lines[k] * tile // tiles, lines[k] * (tile + 1) // tiles
            along = np.uint64(low * LINE)
            step = STEP if is_prefetched else max(1, high - low)
            if buffers_at_once == 4 and k + 4 <= sources.size and lines[k] == lines[k + 3]:
                a, b, c, d = sources[k] + along, sources[k + 1] + along, sources[k + 2] + along, sources[k + 3] + along
                most = max(most, _four_at_a_time(a, b, c, d, high - low, step))
                k += 4
            else:
                most = max(most, _one_at_a_time(sources[k] + along, high - low, step))
                k += 1
        low, high = target_lines * tile // tiles, target_lines * (tile + 1) // tiles
        _write(target + np.uint64(low * LINE), high - low, is_nontemporal)
    return most
