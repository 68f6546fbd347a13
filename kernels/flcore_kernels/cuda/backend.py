"""The CUDA backend: checks arguments, cuts the work into rows, and launches kernels.

The twin of `cpu.backend`, with the same verbs in the same order. Arrays on the device are read in place, after the work
that was enqueued on them before. Arrays in host memory are copied there in portions (see `cuda.ring`). A verb returns
when its work is done: kernels find the errors, so the caller must wait for them anyway.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from flcore_kernels import totals, weights
from flcore_kernels.backend import Buffer, Operand, Quantized
from flcore_kernels.call_checks import admit, admit_total, divisor_of, require_result, require_within
from flcore_kernels.cuda import kernels
from flcore_kernels.cuda.device import Device, Stream
from flcore_kernels.cuda.device_memory import OwnArray, fetched, launch_blocks, load_portions, portions_of, run_alone
from flcore_kernels.cuda.launch import NONE, Answers, Column, Span, columns_of, cut_rows, launch_rows, no_bad
from flcore_kernels.cuda.ring import PORTION_BYTES, Ring
from flcore_kernels.cuda.scan import decode_buffer, encode_buffer, inspect_buffer, scan
from flcore_kernels.device_arrays import device_of, on_device
from flcore_kernels.dtypes import lookup
from flcore_kernels.error_location import locate_error
from flcore_kernels.errors import BufferMismatch, KernelError, Overflow
from flcore_kernels.inspection import Inspection
from flcore_kernels.rows import require_writable, sizes_of
from flcore_kernels.threads import Pool
from flcore_kernels.totals import Total

Given = ParamSpec("Given")
Made = TypeVar("Made")

_DIVISOR = np.dtype([("nearest", "f8"), ("rest", "f8"), ("limbs", "u8", 4), ("exponent", "i8")])


def _uninterrupted(
    verb: "Callable[Concatenate[CudaBackend, Given], Made]",
) -> "Callable[Concatenate[CudaBackend, Given], Made]":
    """Run a verb on a thread that no signal interrupts, because the device uses the arrays until it has ended."""

    @wraps(verb)
    def run(self: "CudaBackend", /, *arguments: Given.args, **keywords: Given.kwargs) -> Made:
        return self._ring.pool.run_aside(lambda: verb(self, *arguments, **keywords))

    return run


class CudaBackend:
    """The verbs of `Backend`, on one CUDA device. `threads` of the CPU copy portions (see `thread_count`)."""

    name = "cuda"

    def __init__(self, device: Device, threads: int | None = None, portion_bytes: int = PORTION_BYTES) -> None:
        self._ring = Ring(device, Pool(threads), portion_bytes)
        self._lock = self._ring.lock

    @_uninterrupted
    def total(self, elements: int, accumulate: str) -> Total:
        """Return an empty total (see `Backend.total`)."""
        with self._lock:
            return Total.zeros(elements, accumulate, self._zeros)

    @_uninterrupted
    def fold(self, total: Total, operands: Sequence[Operand], weights_: Sequence[float], dtype: str) -> None:
        """Add Σ weightᵢ · operandᵢ to `total` (see `Backend.fold`)."""
        with self._lock:
            self._require_ours(total)
            operands = self._all_here(operands)
            sizes = sizes_of(operands[0]) if operands else []
            require_within(sizes, total)
            columns = self._columns(operands, dtype, sizes)
            values, taken = admit(total, operands, weights_)
            kernel = kernels.fold_kernel(dtype, total.accumulate)

            def launch(span: Span, stream: Stream) -> None:
                self._launch(stream, kernel, span.count, span.rows, *_state(total), span.answers[0])

            total.is_spoiled = True  # until all of it is added
            rows = cut_rows(sizes, _flat(columns), self._ring)
            bad = _first(launch_rows(self._ring, rows, launch, operands=columns, weights=taken, initial=no_bad))
            if bad >= 0:
                raise self._locate_error(operands, values, dtype, bad, f"the {total.accumulate} total")
            total.is_spoiled = False

    @_uninterrupted
    def merge(self, total: Total, other: Total) -> None:
        """Add `other` to `total` (see `Backend.merge`)."""
        with self._lock:
            self._require_ours(total)
            self._require_ours(other)
            admit_total(total, other, OwnArray)
            total.is_spoiled = True  # until all of it is added
            kernel = kernels.merge_kernel(total.accumulate)
            if total.accumulate == "exact":
                blocks = total.levels.size
                run_alone(self._ring, kernel, 16 * blocks, (*_state(total), *_state(other), np.int64(blocks)))
            elif other.scale is not None:
                total.scale = other.scale if total.scale is None else total.scale
                addresses = np.uint64(total.values.address), np.uint64(other.values.address)
                moved = np.int64(total.elements), np.int32(other.scale - total.scale)
                run_alone(self._ring, kernel, -(-total.elements // 4), (*addresses, *moved))
            total.is_spoiled = False

    @_uninterrupted
    def finish(self, total: Total, out: Operand, dtype: str, base: Operand | None = None) -> None:
        """Write the mean, or base plus mean, to `out` (see `Backend.finish`)."""
        with self._lock:
            self._require_ours(total)
            out, base = self._here(out), None if base is None else self._here(base)
            sizes = sizes_of(out)
            require_within(sizes, total)
            targets, bases = self._targets(out, base, dtype, sizes)
            kernel = kernels.finish_kernel(total.accumulate, dtype, base is not None)
            divisor = _divisor(total)

            def launch(span: Span, stream: Stream) -> None:
                based, target = span.tables[0], span.tables[-1]
                self._launch(
                    *(stream, kernel, span.count, span.rows, *_state(total)),
                    *(target, based, span.constants[0], span.answers[0]),
                )

            rows = cut_rows(sizes, [*targets, *bases], self._ring)
            reads, writes = [bases] if bases else [], [targets]
            bad = _first(
                launch_rows(self._ring, rows, launch, reads=reads, writes=writes, initial=no_bad, constants=[divisor])
            )
            if bad >= 0:
                raise Overflow(f"element {bad} of the result does not fit into {dtype}", bad, where=dtype)

    @_uninterrupted
    def mean(
        self,
        operands: Sequence[Operand],
        weights_: Sequence[float],
        out: Operand,
        dtype: str,
        accumulate: str = "exact",
        *,
        result: str | None = None,
        base: Operand | None = None,
        scale: int | None = None,
    ) -> None:
        """Fold and finish in one pass (see `Backend.mean`)."""
        with self._lock:
            storage, tally = lookup(dtype), Total.zeros(0, accumulate)
            tally.scale = scale
            operands, out, base = self._all_here(operands), self._here(out), None if base is None else self._here(base)
            values, taken = admit(tally, operands, weights_)
            sizes = sizes_of(out)
            columns = self._columns(operands, dtype, sizes)
            result = result or ("float32" if storage.block else dtype)
            targets, bases = self._targets(out, base, result, sizes)
            kernel = kernels.mean_kernel(dtype, accumulate, result, base is not None)
            divisor = _divisor(tally)

            def launch(span: Span, stream: Stream) -> None:
                target, based = span.tables[-1], span.tables[-2 if bases else -1]
                self._launch(stream, kernel, span.count, span.rows, target, based, span.constants[0], span.answers[0])

            rows = cut_rows(sizes, [*_flat(columns), *targets, *bases], self._ring)
            found = launch_rows(
                *(self._ring, rows, launch),
                operands=columns,
                reads=[bases] if bases else [],
                writes=[targets],
                weights=taken,
                initial=no_bad,
                constants=[divisor],
            )
            bad = _first(found)
            if bad >= 0:
                where = result if accumulate == "exact" else f"{result}, summed in {accumulate}"
                raise self._locate_error(operands, values, dtype, bad, where)

    @_uninterrupted
    def max_abs(self, operands: Sequence[Operand], dtype: str) -> list[float]:
        """Return the largest magnitude of each operand (see `Backend.max_abs`)."""
        with self._lock:
            operands = self._all_here(operands)
            sizes = sizes_of(operands[0]) if operands else []
            tops, firsts = scan(self._ring, sizes, self._columns(operands, dtype, sizes), dtype)
            return [float(top) for top in np.where(firsts == NONE, tops, np.nan)]

    @_uninterrupted
    def inspect(self, operand: Buffer, dtype: str) -> Inspection:
        """Find the first bad element and the largest magnitude (see `Backend.inspect`)."""
        with self._lock:
            return inspect_buffer(self._ring, self._here(operand), dtype)

    @_uninterrupted
    def encode(self, values: npt.NDArray[np.float32], out: Buffer, dtype: str) -> None:
        """Round float32 values to a narrower dtype (see `Backend.encode`)."""
        with self._lock:
            encode_buffer(self._ring, self._here(values), self._here(out), dtype)

    @_uninterrupted
    def decode(self, operand: Buffer, out: npt.NDArray[np.float32], dtype: str) -> None:
        """Write the float32 values of an operand (see `Backend.decode`)."""
        with self._lock:
            decode_buffer(self._ring, self._here(operand), self._here(out), dtype)

    @_uninterrupted
    def save(self, total: Total, file: BinaryIO) -> None:
        """Write a total's state (see `Backend.save`)."""
        with self._lock:
            self._require_ours(total)
            totals.save(total, file, portions_of(total, self._ring))

    @_uninterrupted
    def restore(self, file: BinaryIO) -> Total:
        """Return a saved total (see `Backend.restore`)."""
        with self._lock:
            return totals.restore(file, self._zeros, lambda total: load_portions(total, self._ring))

    def _require_ours(self, total: Total) -> None:
        """Raise `SpoiledTotal`, or `BufferMismatch` for a total that is not in this device's memory."""
        total.require_usable(OwnArray)
        if total.values.device != self._ring.device.number:
            raise BufferMismatch(f"this total is on device {total.values.device}, not {self._ring.device.number}")

    def _zeros(self, count: int, dtype: Any) -> OwnArray:
        return OwnArray.zeros(self._ring, count, np.dtype(dtype))

    def _launch(self, stream: Stream, kernel: str, blocks: int, *arguments: Any) -> None:
        """Launch a block per row, or as many blocks as the device runs at once: kernels loop over the rest."""
        if blocks:
            blocks = launch_blocks(self._ring, blocks * kernels.THREADS)
            stream.launch(kernel, blocks, kernels.THREADS, arguments)

    def _here(self, operand: Any, waited: set[str] | None = None) -> Any:
        """Return an operand in which each device array of another library is a `DeviceArray` of its memory."""
        waited = set() if waited is None else waited
        if isinstance(operand, np.ndarray):
            return operand
        if isinstance(operand, Quantized):
            return Quantized(self._here(operand.codes, waited), self._here(operand.scales, waited))
        if device_of(operand) is not None:
            return on_device(operand, self._ring.device, self._ring.work, waited)
        return [self._here(buffer, waited) for buffer in operand] if isinstance(operand, Sequence) else operand

    def _all_here(self, operands: Sequence[Operand]) -> list[Any]:
        waited: set[str] = set()
        return [self._here(operand, waited) for operand in operands]

    def _columns(self, operands: Sequence[Any], dtype: str, sizes: Sequence[int]) -> list[list[Column]]:
        """Return the group of the operands' columns and, for quantized ones, that of their scales."""
        device = self._ring.device.number
        both = [columns_of(operand, dtype, sizes, f"operand {index}", device) for index, operand in enumerate(operands)]
        groups = [[codes for codes, _ in both], [scales for _, scales in both]]
        return groups if lookup(dtype).block else groups[:1]

    def _targets(self, out: Any, base: Any, dtype: str, sizes: Sequence[int]) -> tuple[list[Column], list[Column]]:
        require_result(dtype)
        device = self._ring.device.number
        targets = [columns_of(out, dtype, sizes, "out", device)[0]]
        require_writable(out)
        return targets, [] if base is None else [columns_of(base, dtype, sizes, "base", device)[0]]

    def _locate_error(self, operands: list[Any], values: Any, dtype: str, element: int, where: str) -> KernelError:
        def fetch(buffer: Buffer) -> Buffer:
            if isinstance(buffer, Quantized):
                return Quantized(fetched(self._ring, buffer.codes), fetched(self._ring, buffer.scales))
            return fetched(self._ring, buffer)

        return locate_error(self, operands, values, dtype, element, where, fetch)


def _flat(groups: Sequence[Sequence[Column]]) -> list[Column]:
    return [column for group in groups for column in group]


def _state(total: Total) -> tuple[np.uint64, np.uint64]:
    return np.uint64(total.values.address), np.uint64(total.levels.address)


def _first(found: list[Answers]) -> int:
    """Return the first element with an error, or else the first result that does not fit, or -1."""
    for each in range(2):
        first = min((bad[each] for (bad,) in found), default=NONE)
        if first != NONE:
            return int(first)
    return -1


def _divisor(total: Total) -> npt.NDArray[Any]:
    """Return the sum of weights as the struct `Divisor` of quotient.cuh."""
    divisor = np.zeros(1, _DIVISOR)
    nearest, rest = divisor_of(total)
    limbs, exponent = weights.as_limbs(total.weight)
    divisor[0] = (nearest, rest, limbs, exponent)
    return divisor
