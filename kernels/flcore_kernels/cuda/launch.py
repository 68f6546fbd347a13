"""Launches of a kernel on rows of buffers: on the device, or copied there in portions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import ALIGNMENT

from flcore_kernels.backend import Operand, Quantized
from flcore_kernels.cuda.device import Stream
from flcore_kernels.cuda.ring import Addresses, Numbers, Portion, Ring, padded
from flcore_kernels.device_arrays import STORED, DeviceArray, wrong_device
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BufferMismatch
from flcore_kernels.rows import Rows, addresses_of, buffers_of

LEAST_ROW = 4096
"""Elements of a row at least, unless the run is shorter: 16 for each thread of a block."""

ROWS_PER_MULTIPROCESSOR = 16
"""Rows of a large model per multiprocessor: enough that none is idle for long at the end."""

NONE = np.uint64(2**64 - 1)
"""The initial value of an error's element, of which kernels take the minimum: no element has this index."""


@dataclass(frozen=True)
class Column:
    """The runs of one operand, or of its scales.

    Attributes:
        addresses: The address of each run.
        is_host: Whether each run is in host memory.
        width: The bytes of `block` elements.
        block: 1; for scales, the elements that share one.
    """

    addresses: Addresses
    is_host: npt.NDArray[np.bool_]
    width: int
    block: int = 1

    def lengths(self, counts: Numbers) -> Numbers:
        """Return the bytes of rows of `counts` elements."""
        return -(-counts // self.block) * self.width

    def places(self, rows: Rows, span: slice) -> Addresses:
        """Return the addresses at which rows begin, in host memory or on the device."""
        return self.addresses[rows.runs[span]] + (rows.along[span] // self.block * self.width).astype(np.uint64)


def columns_of(operand: Operand, dtype: str, sizes: Sequence[int], what: str, device: int) -> tuple[Column, Column]:
    """Return the columns of an operand's elements and of its scales. Without scales, both are the elements' column."""
    storage = lookup(dtype)
    codes, scales = addresses_of(operand, storage, sizes, what, (np.ndarray, DeviceArray))
    arrays = [
        buffer if isinstance(buffer, np.ndarray | DeviceArray) else buffer.codes for buffer in buffers_of(operand)
    ]
    scale_arrays = [buffer.scales for buffer in buffers_of(operand) if isinstance(buffer, Quantized)]
    every: list[Any] = [*arrays, *scale_arrays]
    for array in every:
        if not isinstance(array, DeviceArray):
            continue
        if array.name in STORED and array.name != dtype:
            raise BufferMismatch(f"{what}: expected {dtype}, got an array of {array.name} on a device")
        if array.device != device:
            raise BufferMismatch(wrong_device(what, array.device, device))
        if array.address % array.dtype.itemsize:
            raise BufferMismatch(
                f"{what}: expected an address that is a multiple of {array.dtype.itemsize} bytes, got {array.address}"
            )
    width = storage.dtype.itemsize
    elements = Column(np.array(codes, np.uint64), _on_host(arrays), width)
    if not storage.block:
        return elements, elements
    return elements, Column(np.array(scales, np.uint64), _on_host(scale_arrays), 4, storage.block)


def _on_host(arrays: Sequence[Any]) -> npt.NDArray[np.bool_]:
    return np.array([isinstance(array, np.ndarray) for array in arrays], np.bool_)


def cut_rows(sizes: Sequence[int], columns: Sequence[Column], ring: Ring) -> Rows:
    """Cut runs into rows, so that each multiprocessor has several, and a row's bytes in host memory fit a portion."""
    each = max(
        LEAST_ROW, sum(sizes) // (ROWS_PER_MULTIPROCESSOR * ring.device.multiprocessors) // LEAST_ROW * LEAST_ROW
    )
    return Rows.cut(sizes, max(ALIGNMENT, min(each, elements_of_portion(columns, ring) // ALIGNMENT * ALIGNMENT)))


def elements_of_portion(columns: Sequence[Column], ring: Ring) -> int:
    """Return how many elements of all columns a portion holds; 2^62 if no column is in host memory."""
    shared = sum(column.width / column.block for column in columns if column.is_host.any())
    return int(ring.portion_bytes // shared) if shared else 1 << 62


_ROWS = np.dtype(
    [(name, "u8") for name in ("operands", "scales", "counts", "starts", "aligned", "weights", "rows", "clients")]
)
"""The struct `Rows` of kernels.cuh."""

VECTOR = 16
"""Bytes of the widest loads."""


@dataclass(frozen=True)
class Span:
    """The rows of one launch, and the addresses of their tables.

    Attributes:
        count: Number of rows.
        elements: Number of elements.
        rows: The address, on the device, of the struct `Rows`.
        places: For each group of columns, the address of each row in each column.
        tables: The address, on the device, of each of these arrays.
        answers: The addresses, on the device, of the arrays that come back.
        constants: The addresses, on the device, of the arrays that do not.
    """

    count: int
    elements: int
    rows: np.uint64
    places: list[Addresses]
    tables: list[np.uint64]
    answers: list[np.uint64]
    constants: list[np.uint64]


Group = Sequence[Column]
Launch = Callable[[Span, Stream], None]
Answers = list[npt.NDArray[Any]]


def no_answers(_: Numbers) -> Answers:
    """The answers of a kernel that only writes results."""
    return []


def no_bad(_: Numbers) -> Answers:
    """The answers of a kernel that reports the first element with an error, and the first result that does not fit."""
    return [np.full(2, NONE, np.uint64)]


def launch_rows(
    ring: Ring,
    rows: Rows,
    launch: Launch,
    *,
    operands: Sequence[Group] = (),
    reads: Sequence[Group] = (),
    writes: Sequence[Group] = (),
    weights: npt.NDArray[np.float64] | None = None,
    initial: Callable[[Numbers], Answers] = no_answers,
    constants: Sequence[npt.NDArray[Any]] = (),
    is_row_alone: bool = False,
) -> list[Answers]:
    """Launch a kernel on all rows: once per portion of what they need of host memory, or one for all.

    Returns when all work is done. Rows on the device need host memory for their tables only.

    Args:
        ring: The device's ring, whose lock the caller holds.
        rows: The rows.
        launch: Enqueues the kernel for a span of rows.
        operands: The group of the operands' columns, and that of their scales if they have some.
        reads: Groups of other columns that are read.
        writes: Groups of columns that are written.
        weights: One weight per operand.
        initial: Makes the answers, as they are before a launch, from the counts of its rows.
        constants: Small arrays for every launch.
        is_row_alone: Whether each row has a launch of its own.

    Returns:
        The answers of each launch.
    """
    groups = [*operands, *reads, *writes]
    columns = [column for group in groups for column in group]
    small = [*constants, np.zeros(0) if weights is None else weights]
    found: list[Answers] = []
    try:
        for span in _cut(rows, columns, ring.portion_bytes, is_row_alone):
            counts, answers = rows.counts[span], initial(rows.counts[span])
            found.append(answers)
            need = sum(int(padded(array.nbytes)) for array in (*small, *answers, counts, counts, counts))
            need += sum(int(padded(8 * len(group) * counts.size)) for group in groups) + int(padded(_ROWS.itemsize))
            portion = ring.portion(need + int(_host_bytes(rows, columns, span).sum()))
            portion.run(partial(launch, _filled(portion, rows, span, operands, reads, writes, answers, small)))
        ring.drain()
    except BaseException:
        ring.abandon()
        raise
    return found


def _cut(rows: Rows, columns: Sequence[Column], portion_bytes: int, is_row_alone: bool) -> Iterator[slice]:
    size = rows.counts.size
    held = _host_bytes(rows, columns, slice(0, size)) + 8 * (len(columns) + 3)  # and its entries in the tables
    share = (np.cumsum(held) - held) // portion_bytes
    edges = np.arange(1, size) if is_row_alone else np.flatnonzero(np.diff(share)) + 1
    ends = [0, *edges.tolist(), size] if size else []
    return (slice(first, last) for first, last in pairwise(ends))


def _host_bytes(rows: Rows, columns: Sequence[Column], span: slice) -> Numbers:
    """Return the bytes of each row that are in host memory."""
    total = np.zeros(rows.counts[span].size, np.int64)
    for column in columns:
        total += np.where(column.is_host[rows.runs[span]], padded(column.lengths(rows.counts[span])), 0)
    return total


def _filled(
    portion: Portion,
    rows: Rows,
    span: slice,
    operands: Sequence[Group],
    reads: Sequence[Group],
    writes: Sequence[Group],
    answers: Answers,
    small: Sequence[npt.NDArray[Any]],
) -> Span:
    counts = rows.counts[span]
    written = [_table(group, rows, span, portion.results) for group in writes]
    answered = [portion.answer(array) for array in answers]
    places = [*(_table(group, rows, span, portion.gather) for group in (*operands, *reads)), *written]
    tables, constants = [portion.put(table) for table in places], [portion.put(array) for array in small]
    struct = np.zeros(1, _ROWS)
    if operands:
        aligned = (places[0] % VECTOR == 0).all(axis=1).astype(np.uint8)
        struct["operands"], struct["scales"] = tables[0], tables[len(operands) - 1]
        struct["aligned"] = portion.put(aligned)
        struct["clients"] = len(operands[0])
    struct["counts"], struct["starts"] = portion.put(counts), portion.put(rows.starts[span])
    struct["rows"] = counts.size
    struct["weights"] = constants.pop()
    return Span(counts.size, int(counts.sum()), portion.put(struct), places, tables, answered, constants)


def _table(group: Group, rows: Rows, span: slice, bring: Callable[[Addresses, Numbers], Addresses]) -> Addresses:
    """Return the addresses of the rows of a group on the device. `bring` gives those of rows in host memory."""
    counts = rows.counts[span]
    table = np.empty((counts.size, len(group)), np.uint64)
    for index, column in enumerate(group):
        table[:, index] = column.places(rows, span)
        is_host = column.is_host[rows.runs[span]]
        if is_host.any():
            table[is_host, index] = bring(table[is_host, index], column.lengths(counts[is_host]))
    return table
