"""The CPU backend: checks arguments, cuts the work into rows, and runs kernels on its own threads."""

import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from flcore_kernels import totals
from flcore_kernels.backend import Buffer, Operand
from flcore_kernels.call_checks import admit, admit_total, require_within
from flcore_kernels.cpu import kernels
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.exact_fallback import Target, first_of, write_unresolved
from flcore_kernels.cpu.scan import decode_buffer, encode_buffer, inspect_buffer, max_abs_kernel
from flcore_kernels.dtypes import Storage, lookup
from flcore_kernels.error_location import locate_error
from flcore_kernels.errors import Overflow
from flcore_kernels.inspection import Inspection
from flcore_kernels.rows import Rows, address_of, addresses_of, sizes_of
from flcore_kernels.threads import Pool
from flcore_kernels.totals import BLOCK, Total

ROW_ELEMENTS = 1 << 18
"""Elements of a row at most. A call of a kernel costs little beside them, and batches end at nearly the same time."""

SMALL_ELEMENTS = 1 << 14
"""Elements of a batch at least. With fewer, calls of kernels would cost too much."""

WORTH_SHARING = 1 << 22
"""Elements read and written, of all operands, from which a second thread saves more time than waking it takes. (The
smallest case of the benchmark took 0.33 ms on one thread, 0.49 ms on two.)"""


class CpuBackend:
    """The verbs of `Backend`, on host memory. `threads`: see `thread_count`."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self._pool = Pool(threads)
        self._local = threading.local()

    def total(self, elements: int, accumulate: str) -> Total:
        """Return an empty total (see `Backend.total`)."""
        return Total.zeros(elements, accumulate)

    def fold(self, total: Total, operands: Sequence[Operand], weights_: Sequence[float], dtype: str) -> None:
        """Add Σ weightᵢ · operandᵢ to `total` (see `Backend.fold`)."""
        total.require_usable()
        storage = lookup(dtype)
        sizes = sizes_of(operands[0]) if operands else []
        require_within(sizes, total)
        columns = _columns(operands, storage, sizes)
        values, taken = admit(total, operands, weights_)
        rows = self._rows(sizes, len(operands))
        table, scales = _tables(rows, columns, storage)
        kernel = kernels.fold_kernel(dtype, total.accumulate)

        def work(batch: int) -> int:
            span = rows.batches[batch], rows.batches[batch + 1]
            return int(kernel(table, scales, rows.counts, rows.starts, *span, taken, *_state(total), self._scratch()))

        total.is_spoiled = True  # until all of it is added
        bad = first_of(self._pool.run(work, rows.batches.size - 1))
        if bad >= 0:
            raise locate_error(self, operands, values, dtype, bad, f"the {total.accumulate} total")
        total.is_spoiled = False

    def merge(self, total: Total, other: Total) -> None:
        """Add `other` to `total` (see `Backend.merge`)."""
        admit_total(total, other)
        total.is_spoiled = True  # until all of it is added
        if total.accumulate == "exact":
            addresses = (*_state(total), *_state(other))
            blocks = total.levels.size
            size = ROW_ELEMENTS // BLOCK
            kernel = kernels.merge_kernel()
            self._pool.run(
                lambda batch: kernel(*addresses, batch * size, min(blocks, (batch + 1) * size)), -(-blocks // size)
            )
        elif other.scale is not None:
            total.scale = other.scale if total.scale is None else total.scale
            with np.errstate(over="ignore", invalid="ignore"):
                for start in range(0, total.elements, ROW_ELEMENTS):
                    chunk = other.values[start : start + ROW_ELEMENTS]
                    total.values[start : start + ROW_ELEMENTS] += np.ldexp(chunk, other.scale - total.scale)
        total.is_spoiled = False

    def finish(self, total: Total, out: Operand, dtype: str, base: Operand | None = None) -> None:
        """Write the mean, or base plus mean, to `out` (see `Backend.finish`)."""
        total.require_usable()
        sizes = sizes_of(out)
        require_within(sizes, total)
        rows = self._rows(sizes, 1)
        target = Target.of(rows, out, base, dtype, sizes, total)
        bad, unresolved = self._write(
            kernels.finish_kernel(total.accumulate, dtype, base is not None), rows, _state(total), target
        )
        if unresolved.size:
            overflows = self._pool.run(
                lambda _: write_unresolved(total, unresolved // BLOCK, rows, unresolved, target), 1
            )
            bad = first_of([bad, *overflows])
        if bad >= 0:
            raise Overflow(f"element {bad} of the result does not fit into {dtype}", bad, where=dtype)

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
        storage, tally = lookup(dtype), Total.zeros(0, accumulate)  # for its counts and scale; it has no elements
        tally.scale = scale
        values, taken = admit(tally, operands, weights_)
        sizes = sizes_of(out)
        columns = _columns(operands, storage, sizes)
        rows = self._rows(sizes, len(operands))
        result = result or ("float32" if storage.block else dtype)
        target = Target.of(rows, out, base, result, sizes, tally)
        table, scales = _tables(rows, columns, storage)
        kernel = kernels.mean_kernel(dtype, accumulate, result, base is not None)
        bad, unresolved = self._write(kernel, rows, (table, scales), target, taken)
        if bad < 0 and unresolved.size:
            bad = self._fold_unresolved(rows, unresolved, (table, scales), taken, dtype, target)
        if bad >= 0:
            where = result if accumulate == "exact" else f"{result}, summed in {accumulate}"
            raise locate_error(self, operands, values, dtype, bad, where)

    def _write(
        self, kernel: Kernel, rows: Rows, source: tuple[Any, Any], target: Target, *weights_: Any
    ) -> tuple[int, npt.NDArray[np.int64]]:
        """Run a kernel that writes results.

        Returns the first element that does not fit, or -1, and the first elements of blocks that long division must
        decide, in ascending order.
        """
        unresolved: list[npt.NDArray[np.int64]] = []

        def work(batch: int) -> int:
            found = np.zeros(1 + rows.blocks(batch, BLOCK), np.int64)
            span = rows.batches[batch], rows.batches[batch + 1]
            where = (rows.counts, rows.starts, *span)
            place = (*source, *where, *weights_) if weights_ else (*where, *source)
            bad = int(kernel(*place, *target.arguments, found, self._scratch()))
            unresolved.append(found[1 : 1 + found[0]])
            return bad

        bad = first_of(self._pool.run(work, rows.batches.size - 1))
        return bad, np.sort(np.concatenate([np.zeros(0, np.int64), *unresolved]))

    def _fold_unresolved(
        self,
        rows: Rows,
        unresolved: npt.NDArray[np.int64],
        tables: tuple[Any, Any],
        taken: Any,
        dtype: str,
        target: Target,
    ) -> int:
        """Fold the unresolved blocks again, into a total of these blocks only, and divide it by long division.

        In `mean`, a tile's total is overwritten by the next tile. Few blocks are unresolved, so this costs little.
        """
        storage = lookup(dtype)
        where = np.searchsorted(rows.starts, unresolved, side="right") - 1
        along = unresolved - rows.starts[where]
        bytes_along = (along * storage.dtype.itemsize).astype(np.uint64)[:, None]
        scales_along = (along // storage.block * 4).astype(np.uint64)[:, None] if storage.block else bytes_along
        counts = np.minimum(BLOCK, rows.counts[where] - along)
        total = Total.zeros(unresolved.size * BLOCK, "exact")
        blocks = np.arange(unresolved.size)
        total.weight = target.weight

        def work(_: int) -> int:
            kernels.fold_kernel(dtype, "exact")(
                *(tables[0][where] + bytes_along, tables[1][where] + scales_along, counts),
                *(blocks * BLOCK, 0, unresolved.size, taken, *_state(total), self._scratch()),
            )
            return write_unresolved(total, blocks, rows, unresolved, target)

        return self._pool.run(work, 1)[0]

    def max_abs(self, operands: Sequence[Operand], dtype: str) -> list[float]:
        """Return the largest magnitude of each operand (see `Backend.max_abs`)."""
        storage = lookup(dtype)
        sizes = sizes_of(operands[0]) if operands else []
        rows = self._rows(sizes, len(operands))
        table, scales = _tables(rows, _columns(operands, storage, sizes), storage)
        magnitudes = np.zeros((rows.counts.size, len(operands)))
        kernel = max_abs_kernel(dtype)
        self._pool.run(
            lambda batch: kernel(table, scales, rows.counts, rows.batches[batch], rows.batches[batch + 1], magnitudes),
            rows.batches.size - 1,
        )
        return [float(top) for top in magnitudes.max(axis=0, initial=0.0)]

    def inspect(self, operand: Buffer, dtype: str) -> Inspection:
        """Find the first bad element and the largest magnitude (see `Backend.inspect`)."""
        return inspect_buffer(self._pool, operand, dtype)

    def encode(self, values: npt.NDArray[np.float32], out: Buffer, dtype: str) -> None:
        """Round float32 values to a narrower dtype (see `Backend.encode`)."""
        encode_buffer(self._pool, values, out, dtype)

    def decode(self, operand: Buffer, out: npt.NDArray[np.float32], dtype: str) -> None:
        """Write the float32 values of an operand (see `Backend.decode`)."""
        decode_buffer(self._pool, operand, out, dtype)

    def save(self, total: Total, file: BinaryIO) -> None:
        """Write a total's state (see `Backend.save`)."""
        totals.save(total, file)

    def restore(self, file: BinaryIO) -> Total:
        """Return a saved total (see `Backend.restore`)."""
        return totals.restore(file)

    def _rows(self, sizes: Sequence[int], operands: int) -> Rows:
        """Cut runs of these sizes so that each thread gets about four batches, within the bounds above."""
        each = sum(sizes) // (4 * self._pool.threads)
        if sum(sizes) * (operands + 4) < WORTH_SHARING:
            each = ROW_ELEMENTS
        return Rows.cut(sizes, max(SMALL_ELEMENTS, min(ROW_ELEMENTS, each // SMALL_ELEMENTS * SMALL_ELEMENTS)))

    def _scratch(self) -> np.uint64:
        """Return the address of this thread's scratch memory."""
        scratch: npt.NDArray[np.uint8] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = np.zeros(kernels.SCRATCH_BYTES, np.uint8)
        return np.uint64(address_of(scratch))


def _columns(operands: Sequence[Operand], storage: Storage, sizes: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    return [addresses_of(operand, storage, sizes, f"operand {index}") for index, operand in enumerate(operands)]


def _tables(rows: Rows, columns: list[tuple[list[int], list[int]]], storage: Storage) -> tuple[Any, Any]:
    """Return the tables of the addresses of rows and of their scales. Without scales, both are the same table."""
    table = rows.table([codes for codes, _ in columns], storage.dtype.itemsize)
    return table, rows.table([scales for _, scales in columns], 4 / storage.block) if storage.block else table


def _state(total: Total) -> tuple[np.uint64, np.uint64]:
    return np.uint64(address_of(total.values)), np.uint64(address_of(total.levels))
