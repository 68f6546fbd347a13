"""The tables of kernels: where each row of elements begins in every operand.

A *run* is one buffer of an operand. A *row* is a part of a run that one thread works on. A *batch* is several short
rows, or one long one: the unit of work that threads take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import ALIGNMENT

from flcore_kernels.backend import Buffer, Operand, Quantized
from flcore_kernels.device_arrays import DeviceArray
from flcore_kernels.dtypes import Storage
from flcore_kernels.errors import BufferMismatch

Addresses = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


def address_of(array: npt.NDArray[Any] | DeviceArray) -> int:
    """Return the address of an array's first element. The caller keeps the array alive."""
    return array.address if isinstance(array, DeviceArray) else int(array.__array_interface__["data"][0])


def buffers_of(operand: Operand) -> list[Buffer]:
    """Return an operand as a list of buffers."""
    if isinstance(operand, np.ndarray | DeviceArray | Quantized):
        return [operand]
    return list(operand)


def offsets_of(sizes: Sequence[int]) -> Numbers:
    """Return where buffers of these sizes begin in a total, at multiples of 256, and where the last one ends."""
    padded = -(-np.array(sizes, np.int64) // ALIGNMENT) * ALIGNMENT
    places: Numbers = np.concatenate([np.zeros(1, np.int64), np.cumsum(padded)])
    return places


def sizes_of(operand: Operand) -> list[int]:
    """Return the number of elements of each buffer of an operand."""
    sizes = []
    for buffer in buffers_of(operand):
        array = buffer.codes if isinstance(buffer, Quantized) else buffer
        if not isinstance(array, np.ndarray | DeviceArray):
            raise BufferMismatch(f"expected an array, Quantized, or a list of them, got a {type(array).__name__}")
        sizes.append(array.size)
    return sizes


def addresses_of(
    operand: Operand, storage: Storage, sizes: Sequence[int], what: str, kinds: Any = np.ndarray
) -> tuple[list[int], list[int]]:
    """Return the addresses of an operand's buffers, and of their scales, or raise `BufferMismatch`.

    `kinds`: the classes of arrays that the backend reads. `what` names the operand in errors.
    """
    buffers = buffers_of(operand)
    if len(buffers) != len(sizes):
        raise BufferMismatch(f"{what}: expected {len(sizes)} buffers, got {len(buffers)}")
    if storage.block:
        return _quantized_addresses(buffers, storage, sizes, what, kinds)
    dtype = storage.dtype
    addresses = []
    for index, (buffer, size) in enumerate(zip(buffers, sizes, strict=True)):
        if (
            not isinstance(buffer, kinds)
            or buffer.dtype != dtype
            or buffer.size != size
            or not buffer.flags.c_contiguous
        ):
            raise BufferMismatch(_mismatch(buffer, dtype, size, what, index, len(sizes)))
        addresses.append(address_of(buffer))
    return addresses, addresses


def _quantized_addresses(
    buffers: list[Buffer], storage: Storage, sizes: Sequence[int], what: str, kinds: Any
) -> tuple[list[int], list[int]]:
    codes, scales = [], []
    for index, (buffer, size) in enumerate(zip(buffers, sizes, strict=True)):
        if not isinstance(buffer, Quantized):
            raise BufferMismatch(f"{what}: expected Quantized codes and scales, got {type(buffer).__name__}")
        wanted = (
            (buffer.codes, np.dtype(np.int8), size),
            (buffer.scales, np.dtype(np.float32), -(-size // storage.block)),
        )
        for array, dtype, count in wanted:
            if (
                not isinstance(array, kinds)
                or array.dtype != dtype
                or array.size != count
                or not array.flags.c_contiguous
            ):
                raise BufferMismatch(_mismatch(array, dtype, count, what, index, len(sizes)))
        codes.append(address_of(buffer.codes))
        scales.append(address_of(buffer.scales))
    return codes, scales


def _mismatch(buffer: Any, dtype: np.dtype[Any], size: int, what: str, index: int, count: int) -> str:
    where = what if count == 1 else f"{what}, buffer {index}"
    if not isinstance(buffer, np.ndarray | DeviceArray):
        return f"{where}: expected an array of {size} {dtype}, got {type(buffer).__name__}"
    contiguous = "contiguous" if buffer.flags.c_contiguous else "strided"
    place = " on a device" if isinstance(buffer, DeviceArray) else ""
    return (
        f"{where}: expected a contiguous buffer of {size} {dtype}, got {contiguous} {buffer.dtype} "
        f"of shape {buffer.shape}{place}"
    )


def require_writable(out: Operand) -> None:
    """Raise `BufferMismatch` if a buffer of a result is read-only."""
    for buffer in buffers_of(out):
        for array in buffer if isinstance(buffer, Quantized) else (buffer,):
            if not array.flags.writeable:
                raise BufferMismatch("out: expected a writable buffer, got a read-only one")


@dataclass(frozen=True)
class Rows:
    """The rows of a call. Row r is a part of run `runs[r]`; batch b ends before row `batches[b + 1]`.

    Attributes:
        runs: The run of each row.
        along: The offset of a row in its run, in elements.
        counts: Elements of each row.
        starts: The element of the total at which each row begins.
        batches: The first row of each batch, and the number of rows.
    """

    runs: Numbers
    along: Numbers
    counts: Numbers
    starts: Numbers
    batches: Numbers

    @classmethod
    def cut(cls, sizes: Sequence[int], row_elements: int) -> "Rows":
        """Cut runs of these sizes into rows of at most `row_elements` (a multiple of 256), and these into batches."""
        lengths = np.array(sizes, np.int64)
        rows_of_each = -(-lengths // row_elements)
        runs = np.repeat(np.arange(lengths.size), rows_of_each)
        first = np.cumsum(rows_of_each) - rows_of_each
        along = (np.arange(runs.size) - first[runs]) * row_elements
        counts = np.minimum(lengths[runs] - along, row_elements)
        starts = offsets_of(sizes)[:-1][runs] + along
        # A row counts as at least 256 elements: tiny rows have a fixed cost.
        share = np.cumsum(np.maximum(counts, ALIGNMENT)) // row_elements
        edges = np.flatnonzero(np.diff(share)) + 1
        return cls(runs, along, counts, starts, np.concatenate([[0], edges, [runs.size]]).astype(np.int64))

    def table(self, columns: Sequence[Sequence[int]], bytes_per_element: float) -> Addresses:
        """Return the address of each row (first axis) in each operand (second axis).

        `columns`: for each operand, the addresses of its runs. `bytes_per_element` is less than 1 for scales.
        """
        offsets = (self.along * bytes_per_element).astype(np.uint64)
        runs = np.array(columns, np.uint64).reshape(len(columns), -1 if columns else 0).T
        return np.ascontiguousarray(runs[self.runs] + offsets[:, None])

    def blocks(self, batch: int, block: int) -> int:
        """Return how many blocks of elements a batch has."""
        counts = self.counts[self.batches[batch] : self.batches[batch + 1]]
        return int((-(-counts // block)).sum())


__all__ = [
    "Rows",
    "address_of",
    "addresses_of",
    "buffers_of",
    "offsets_of",
    "require_writable",
    "sizes_of",
]
