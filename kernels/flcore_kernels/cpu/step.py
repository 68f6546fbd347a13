"""The kernels of server optimizers: read a mean, a base and a state, and write a model and a new state, in one pass.

A formula of `optimizers` is a device function of one element. It gets the change, the old state and six numbers, and
returns the update of the model and the new state. A kernel composes a formula with the dtypes of mean and model.
Roundings are those of the operations as they are written: nothing is contracted or reordered, so results are the same
on each processor, and whatever is computed together.

As in `cpu.finish`, inner loops have no branches, and combine flags of elements that do not fit. Where results replace
what they follow from, a block of them is computed in the first-level cache, and copied if all of it fits. So the cause
of an error can be read. Non-temporal stores were slower (2.5 against 1.9 ns per element of Adam, on one thread).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from flcore_kernels.call_checks import divisor_of
from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.decode import DECODERS
from flcore_kernels.cpu.device_function import device_function
from flcore_kernels.cpu.encode import ENCODERS
from flcore_kernels.cpu.exact_fallback import Target, write_unresolved
from flcore_kernels.cpu.finish import FITS, MISFIT, emit
from flcore_kernels.cpu.kernels import SCRATCH_BYTES, finish_kernel
from flcore_kernels.dtypes import STORAGE
from flcore_kernels.rows import Rows, address_of
from flcore_kernels.step import SLOTS, state_dtype
from flcore_kernels.totals import BLOCK, Total

STEP_BLOCK = 128
"""Elements of a block. Lines of all operands are prefetched for a block at once, at most 32 of float32."""

AHEAD_BYTES = 1024
"""Bytes by which operands are prefetched ahead."""

RESULTS = SLOTS + 1
"""What can fail to fit, per element: the model, and each array of the state."""

BLOCKS_BYTES = RESULTS * 8 * STEP_BLOCK
"""Scratch memory of a kernel: a block of each result."""

_U64, _I64, _F64 = types.uint64, types.int64, types.float64
_TABLE = types.Array(_U64, 2, "C")
_ADDRESSES, _NUMBERS, _REALS = types.Array(_U64, 1, "C"), types.Array(_I64, 1, "C"), types.Array(_F64, 1, "C")


@cache
def step_kernel(formula: str, mean: str, dtype: str) -> Kernel:
    """Return the kernel of a formula, for means of `mean` (float32 or float64) and a model of `dtype`.

    It returns -1, or `RESULTS` · element + result for the first element that does not fit; result 0 is the model, and
    others are the arrays of the state. Tables of the old and the new arrays have a column for each of them. `room` is
    added to the addresses of means. `numbers` are the divisor of the mean, the factor of the base in the change (1, or
    0 for means of differences), and the six of the formula. `in_place` says which results replace their input.
    """
    signature = _I64(
        *(_ADDRESSES, _U64, _TABLE, _TABLE, _NUMBERS, _NUMBERS, _I64, _I64),
        *(_REALS, _NUMBERS, _U64),
    )
    return Kernel(f"step-{formula}-{mean}-{dtype}", signature, lambda: _step(formula, mean, dtype))


@dataclass(frozen=True)
class ExactMeans:
    """The means of an exact total as float64, of a batch of rows at a time, in a thread's scratch memory.

    Attributes:
        places: Where the means of each row begin in that memory.
        nbytes: Bytes of it.
    """

    total: Total
    rows: Rows
    places: npt.NDArray[np.uint64]
    nbytes: int

    @classmethod
    def of(cls, total: Total, rows: Rows) -> "ExactMeans":
        """Return the means of rows, each at its distance from the first row of its batch."""
        first = np.repeat(rows.starts[rows.batches[:-1]], np.diff(rows.batches)) if rows.starts.size else rows.starts
        places = ((rows.starts - first) * 8).astype(np.uint64)
        longest = int((rows.starts - first + rows.counts).max(initial=0)) * 8
        return cls(total, rows, places, longest + SCRATCH_BYTES)

    def write(self, batch: int, room: np.uint64) -> None:
        """Write the means of a batch's rows, each rounded once."""
        span = slice(*self.rows.batches[batch : batch + 2])
        rows = replace(self.rows, counts=self.rows.counts[span], starts=self.rows.starts[span])
        divisor, rest = divisor_of(self.total)
        places = self.places[span] + room
        target = Target("float64", places, np.zeros_like(places), self.total.weight, divisor, rest, past_cache=False)
        values, levels = np.uint64(address_of(self.total.values)), np.uint64(address_of(self.total.levels))
        found = np.zeros(1 + self.rows.blocks(batch, BLOCK), np.int64)
        work = room + np.uint64(self.nbytes - SCRATCH_BYTES)
        finish_kernel("exact", "float64", False)(
            *(rows.counts, rows.starts, 0, rows.counts.size, values, levels), *target.arguments, found, work
        )
        unresolved = found[1 : 1 + found[0]]
        if unresolved.size:  # all of them fit: no mean is beyond its operands
            write_unresolved(self.total, unresolved // BLOCK, rows, unresolved, target)


@device_function
def scaled(change: Any, m: Any, v: Any, numbers: Any) -> Any:
    """x' = x + lr · Δ."""
    return numbers[0] * change, m, v


@device_function
def momentum(change: Any, m: Any, v: Any, numbers: Any) -> Any:
    """m' = beta · m + Δ, x' = x + lr · (ahead · Δ + through · m'): (0, 1) without and (1, beta) with Nesterov."""
    lr, beta, _, ahead, through, _ = numbers
    moved = beta * m + change
    return lr * (ahead * change + through * moved), moved, v


@device_function
def adaptive(change: Any, m: Any, v: Any, numbers: Any) -> Any:
    """v' = keep · v + take · Δ²: (1, 1) for Adagrad, (beta2, 1 − beta2) for Adam."""
    lr, beta, other, keep, take, tau = numbers
    moved, grown = beta * m + other * change, keep * v + take * (change * change)
    return lr * moved / (np.sqrt(grown) + tau), moved, grown


@device_function
def yogi(change: Any, m: Any, v: Any, numbers: Any) -> Any:
    """v' = v − take · Δ² · sign(v − Δ²). It is not below 0: if v > Δ², at most Δ² is subtracted."""
    lr, beta, other, _, take, tau = numbers
    square = change * change
    less = take * square
    moved, grown = beta * m + other * change, v - less if v > square else (v + less if v < square else v)
    return lr * moved / (np.sqrt(grown) + tau), moved, grown


FORMULAS: dict[str, tuple[Callable[..., Any], int]] = {
    "scaled": (scaled, 0),
    "momentum": (momentum, 1),
    "adaptive": (adaptive, 2),
    "yogi": (yogi, 2),
}
"""Each formula, and the arrays of its state."""


@device_function
def fetch(address: Any, size: Any) -> None:
    """Ask for the lines of some bytes, ahead of the loop."""
    for i in range(0, size, 64):
        memory.prefetch(address + np.uint64(i + AHEAD_BYTES))


@device_function
def no_state(address: Any, index: Any) -> Any:
    """0, the element of a state where there is none."""
    return np.float32(0.0)


@device_function
def store_nothing(address: Any, index: Any, value: Any) -> None:
    """Write no state where there is none."""


@device_function
def magnitude_64(value: Any) -> Any:
    """The bits of a float64 without its sign, which are in the order of magnitudes."""
    return np.uint64(memory.f64_bits(value)) & np.uint64(0x7FFFFFFFFFFFFFFF)


@device_function
def magnitude_32(value: Any) -> Any:
    """The bits of a float32 without its sign."""
    return np.uint32(memory.f32_bits(value) & np.uint32(0x7FFFFFFF))


@device_function
def unsigned_64(value: Any) -> Any:
    """The bits of a float64, of which those of negative numbers are the largest."""
    return np.uint64(memory.f64_bits(value))


@device_function
def unsigned_32(value: Any) -> Any:
    """The bits of a float32, of which those of negative numbers are the largest."""
    return memory.f32_bits(value)


@cache
def _element(formula: str, mean: str, dtype: str) -> Callable[..., Any]:
    """Return the function of one element: its results, not rounded yet, and the v that it began with."""
    advance, slots = FORMULAS[formula]
    real, is_single, base_value = real_of(mean, dtype), mean == "float32", DECODERS[dtype].value
    load_mean = memory.load_f32 if is_single else memory.load_f64
    load_state = memory.load_f64 if dtype == "float64" else memory.load_f32
    load_m, load_v = load_state if slots > 0 else no_state, load_state if slots > 1 else no_state

    @device_function
    def element(means: Any, base: Any, old_m: Any, old_v: Any, i: Any, scaling: Any, numbers: Any) -> Any:
        divisor, inverse, kept = scaling
        # As in `cpu.finish`: in float64, the error of the inverse is far below float32's last place.
        total = np.float64(load_mean(means, i))
        value = total * inverse if is_single else total / divisor
        start = base_value(base, np.float32(1.0), i)
        change, v = real(value - kept * np.float64(start)), real(load_v(old_v, i))
        moved, new_m, new_v = advance(change, real(load_m(old_m, i)), v, numbers)
        return real(real(start) + moved), new_m, new_v, v

    return element  # type: ignore[no-any-return]


def real_of(mean: str, dtype: str) -> Any:
    """Return the type of the arithmetic after the change: float32 only where mean and model are float32."""
    return np.float32 if mean == dtype == "float32" else np.float64


def _step(formula: str, mean: str, dtype: str) -> Callable[..., Any]:
    element, (_, slots), real = _element(formula, mean, dtype), FORMULAS[formula], real_of(mean, dtype)
    encode, is_wide = ENCODERS[dtype], dtype == "float64"
    held, unsigned = (np.float64, np.uint64) if is_wide else (np.float32, np.uint32)
    magnitude, signed = (magnitude_64, unsigned_64) if is_wide else (magnitude_32, unsigned_32)
    infinity, zero = unsigned(STORAGE[state_dtype(dtype)].infinity), held(0.0)
    store_held = memory.store_f64 if is_wide else memory.store_f32
    store_m, store_v = store_held if slots > 0 else store_nothing, store_held if slots > 1 else store_nothing
    round_model, store_model, high = encode.round, encode.store, encode.high
    is_plain = encode.bytes == np.dtype(held).itemsize
    mean_bytes, model_bytes, state_bytes = np.dtype(mean).itemsize, encode.bytes, np.dtype(held).itemsize
    block_bytes = np.uint64(8 * STEP_BLOCK)

    @device_function
    def fill(means, base, old_m, old_v, start, count, scaling, numbers, results):  # type: ignore[no-untyped-def]
        """Compute a block, and return whether all of it fits. -0.0 becomes 0.0, as in `cpu.finish`."""
        new_x, new_m, new_v = results
        top, misfits = unsigned(0), FITS
        for i in range(count):
            x, m, v, old = element(means, base, old_m, old_v, start + i, scaling, numbers)
            moved, grown = held(m) + zero, held(v) + zero
            top = unsigned(max(top, unsigned(max(magnitude(moved), max(signed(grown), signed(held(old) + zero))))))
            if is_plain:
                plain = held(x) + zero
                top = unsigned(max(top, magnitude(plain)))
                store_held(new_x, i, plain)
            else:
                rounded = round_model(x) + 0.0
                misfits |= FITS if np.abs(rounded) <= high else MISFIT
                store_model(new_x, i, rounded)
            store_m(new_m, i, moved)
            store_v(new_v, i, grown)
        return misfits | (FITS if top < infinity else MISFIT)

    @device_function
    def first_misfit(means, base, old_m, old_v, start, count, scaling, numbers):  # type: ignore[no-untyped-def]
        for i in range(start, start + count):
            x, m, v, old = element(means, base, old_m, old_v, i, scaling, numbers)
            if magnitude(held(m)) >= infinity:
                return RESULTS * i + 1
            if max(signed(held(v) + zero), signed(held(old) + zero)) >= infinity:
                return RESULTS * i + 2
            if not np.abs(round_model(np.float64(x))) <= high:
                return RESULTS * i
        return np.int64(-1)

    def step(  # type: ignore[no-untyped-def]
        means, room, olds, news, counts, starts, first, last, numbers, in_place, scratch
    ):
        scaling = (numbers[0], 1.0 / numbers[0], numbers[1])
        taken = (
            *(real(numbers[2]), real(numbers[3]), real(numbers[4])),
            *(real(numbers[5]), real(numbers[6]), real(numbers[7])),
        )
        for row in range(first, last):
            old = (means[row] + room, olds[row, 0], olds[row, 1], olds[row, 2])
            for start in range(0, counts[row], STEP_BLOCK):
                count = min(STEP_BLOCK, counts[row] - start)
                fetch(old[0] + np.uint64(start * mean_bytes), count * mean_bytes)
                fetch(old[1] + np.uint64(start * model_bytes), count * model_bytes)
                if slots > 0:
                    fetch(old[2] + np.uint64(start * state_bytes), count * state_bytes)
                if slots > 1:
                    fetch(old[3] + np.uint64(start * state_bytes), count * state_bytes)
                here = news[row, 0] + np.uint64(start * model_bytes)
                here_m = news[row, 1] + np.uint64(start * state_bytes)
                here_v = news[row, 2] + np.uint64(start * state_bytes)
                results = (
                    scratch if in_place[0] else here,
                    scratch + block_bytes if slots > 0 and in_place[1] else here_m,
                    scratch + block_bytes + block_bytes if slots > 1 and in_place[2] else here_v,
                )
                if fill(*old, start, count, scaling, taken, results) != FITS:
                    return RESULTS * starts[row] + first_misfit(*old, start, count, scaling, taken)
                if in_place[0]:
                    emit(here, results[0], count * model_bytes, False)
                if slots > 0 and in_place[1]:
                    emit(here_m, results[1], count * state_bytes, False)
                if slots > 1 and in_place[2]:
                    emit(here_v, results[2], count * state_bytes, False)
        return np.int64(-1)

    return step
