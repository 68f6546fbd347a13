"""What a launch works on: rows of buffers, where they are on the device, or where they are brought to in pieces."""

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
from flcore_kernels.cuda.ring import Addresses, Numbers, Piece, Ring, padded
from flcore_kernels.device_arrays import STORED, DeviceArray, elsewhere
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BufferMismatch
from flcore_kernels.rows import Rows, addresses_of, buffers_of

LEAST_ROW = 4096
ROWS_EACH = 16
"""Rows of a large model for each multiprocessor: enough that none is idle long at the end."""

NONE = np.uint64(2**64 - 1)
"""What a kernel leaves as it is where nothing is wrong: no element has this index."""


@dataclass(frozen=True)
class Column:
    """One buffer's runs: their addresses, whether each is in the host's memory, and the bytes that `block` elements
    share (an element's own, or those of a scale)."""

    addresses: Addresses
    is_host: npt.NDArray[np.bool_]
    width: int
    block: int = 1

    def lengths(self, counts: Numbers) -> Numbers:
        """Return the bytes of rows of so many elements."""
        return -(-counts // self.block) * self.width

    def places(self, rows: Rows, span: slice) -> Addresses:
        """Return where rows begin, wherever that is."""
        return self.addresses[rows.runs[span]] + (rows.along[span] // self.block * self.width).astype(np.uint64)


def columns_of(operand: Operand, dtype: str, sizes: Sequence[int], what: str, device: int) -> tuple[Column, Column]:
    """Return the columns of an operand's elements and of its scales (of nothing else, where it has none)."""
    storage = lookup(dtype)
    codes, scales = addresses_of(operand, storage, sizes, what, (np.ndarray, DeviceArray))
    arrays = [
        buffer if isinstance(buffer, np.ndarray | DeviceArray) else buffer.codes for buffer in buffers_of(operand)
    ]
    beside = [buffer.scales for buffer in buffers_of(operand) if isinstance(buffer, Quantized)]
    every: list[Any] = [*arrays, *beside]
    for array in every:
        if not isinstance(array, DeviceArray):
            continue
        if array.name in STORED and array.name != dtype:
            raise BufferMismatch(f"{what}: expected {dtype}, got an array of {array.name} on a device")
        if array.device != device:
            raise BufferMismatch(elsewhere(what, array.device, device))
        if array.address % array.dtype.itemsize:
            raise BufferMismatch(f"{what}: it is at no multiple of its elements' {array.dtype.itemsize} bytes")
    width = storage.dtype.itemsize
    elements = Column(np.array(codes, np.uint64), _on_host(arrays), width)
    if not storage.block:
        return elements, elements
    return elements, Column(np.array(scales, np.uint64), _on_host(beside), 4, storage.block)


def _on_host(arrays: Sequence[Any]) -> npt.NDArray[np.bool_]:
    return np.array([isinstance(array, np.ndarray) for array in arrays], np.bool_)


def cut_rows(sizes: Sequence[int], columns: Sequence[Column], ring: Ring) -> Rows:
    """Cut runs so that every multiprocessor has a few rows, and a row's bytes in the host's memory fit a piece."""
    each = max(LEAST_ROW, sum(sizes) // (ROWS_EACH * ring.device.multiprocessors) // LEAST_ROW * LEAST_ROW)
    return Rows.cut(sizes, max(ALIGNMENT, min(each, elements_of_piece(columns, ring) // ALIGNMENT * ALIGNMENT)))


def elements_of_piece(columns: Sequence[Column], ring: Ring) -> int:
    """Return how many elements of all columns a piece holds; without end where none is in the host's memory."""
    shared = sum(column.width / column.block for column in columns if column.is_host.any())
    return int(ring.piece_bytes // shared) if shared else 1 << 62


_ROWS = np.dtype(
    [(name, "u8") for name in ("operands", "scales", "counts", "starts", "aligned", "weights", "rows", "clients")]
)
"""`Rows` of kernels.cuh."""

VECTOR = 16
"""Bytes of the widest loads."""


@dataclass(frozen=True)
class Span:
    """Some rows that are worked on in one launch.

    `rows`: where the device finds what they are. `places`: for each group of columns the rows' addresses, one column
    after the other in each row; `tables`: where the device finds these. `answers` and `constants`: small arrays there.
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
    """Of a kernel that only writes results."""
    return []


def no_bad(_: Numbers) -> Answers:
    """Of a kernel that tells the smallest element with which something is wrong, and the smallest that does not fit."""
    return [np.full(2, NONE, np.uint64)]


def work(
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
    """Launch a kernel on all rows: at once where they are on the device, and in pieces where some are brought there.

    `operands`: the columns of their elements, and of their scales where they have some. `initial` gives the answers of
    rows of so many elements, as they are before the kernel; returns those of each launch after it. `is_row_alone`: each
    row has a launch of its own. Returns when all results are where they belong.
    """
    groups = [*operands, *reads, *writes]
    columns = [column for group in groups for column in group]
    small = [*constants, np.zeros(0) if weights is None else weights]
    found: list[Answers] = []
    try:
        for span in _cut(rows, columns, ring.piece_bytes, is_row_alone):
            counts, answers = rows.counts[span], initial(rows.counts[span])
            found.append(answers)
            need = sum(int(padded(array.nbytes)) for array in (*small, *answers, counts, counts, counts))
            need += sum(int(padded(8 * len(group) * counts.size)) for group in groups) + int(padded(_ROWS.itemsize))
            piece = ring.piece(need + int(_host_bytes(rows, columns, span).sum()))
            piece.run(partial(launch, _filled(piece, rows, span, operands, reads, writes, answers, small)))
        ring.drain()
    except BaseException:
        ring.abandon()
        raise
    return found


def _cut(rows: Rows, columns: Sequence[Column], piece_bytes: int, is_row_alone: bool) -> Iterator[slice]:
    size = rows.counts.size
    held = _host_bytes(rows, columns, slice(0, size)) + 8 * (len(columns) + 3)  # and its lines in the tables
    share = (np.cumsum(held) - held) // piece_bytes
    edges = np.arange(1, size) if is_row_alone else np.flatnonzero(np.diff(share)) + 1
    ends = [0, *edges.tolist(), size] if size else []
    return (slice(first, last) for first, last in pairwise(ends))


def _host_bytes(rows: Rows, columns: Sequence[Column], span: slice) -> Numbers:
    """Return the bytes of each row that are in the host's memory."""
    total = np.zeros(rows.counts[span].size, np.int64)
    for column in columns:
        total += np.where(column.is_host[rows.runs[span]], padded(column.lengths(rows.counts[span])), 0)
    return total


def _filled(
    piece: Piece,
    rows: Rows,
    span: slice,
    operands: Sequence[Group],
    reads: Sequence[Group],
    writes: Sequence[Group],
    answers: Answers,
    small: Sequence[npt.NDArray[Any]],
) -> Span:
    counts = rows.counts[span]
    written = [_table(group, rows, span, piece.results) for group in writes]
    answered = [piece.answer(array) for array in answers]
    places = [*(_table(group, rows, span, piece.gather) for group in (*operands, *reads)), *written]
    tables, constants = [piece.put(table) for table in places], [piece.put(array) for array in small]
    told = np.zeros(1, _ROWS)
    if operands:
        aligned = (places[0] % VECTOR == 0).all(axis=1).astype(np.uint8)
        told["operands"], told["scales"], told["aligned"] = tables[0], tables[len(operands) - 1], piece.put(aligned)
        told["clients"] = len(operands[0])
    told["counts"], told["starts"], told["rows"] = piece.put(counts), piece.put(rows.starts[span]), counts.size
    told["weights"] = constants.pop()
    return Span(counts.size, int(counts.sum()), piece.put(told), places, tables, answered, constants)


def _table(group: Group, rows: Rows, span: slice, bring: Callable[[Addresses, Numbers], Addresses]) -> Addresses:
    """Return where the rows of some columns are on the device; `bring` is asked for those that are not there."""
    counts = rows.counts[span]
    table = np.empty((counts.size, len(group)), np.uint64)
    for index, column in enumerate(group):
        table[:, index] = column.places(rows, span)
        is_host = column.is_host[rows.runs[span]]
        if is_host.any():
            table[is_host, index] = bring(table[is_host, index], column.lengths(counts[is_host]))
    return table
