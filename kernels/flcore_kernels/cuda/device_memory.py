"""Totals in a device's memory: arrays of our own there, and their bytes on the way out and back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels.cuda import kernels
from flcore_kernels.cuda.device import Bytes
from flcore_kernels.cuda.ring import Ring
from flcore_kernels.device_arrays import DeviceArray, Flags
from flcore_kernels.totals import Total

WIDE, EACH = 2, 8
"""Bytes of what memory is filled with, and how many of it a thread writes at once."""


class OwnArray(DeviceArray):
    """A flat array of ours; it can be filled."""

    @classmethod
    def zeros(cls, ring: Ring, count: int, dtype: np.dtype[Any]) -> "OwnArray":
        """Return `count` zeros, or raise `OutOfDeviceMemory`."""
        memory = ring.device.allocate(max(1, count * dtype.itemsize))
        array = cls(memory.address, (count,), dtype, ring.device.number, Flags(True, True), (memory, ring))
        array.fill(0)
        return array

    def fill(self, value: int) -> None:
        """Set all elements to zero, or those of two bytes to any value."""
        ring: Ring = self.owner[1]
        count = self.nbytes // WIDE
        if not count:
            return
        arguments = np.uint64(self.address), np.int64(count), np.int16(value)

        def work() -> None:
            with ring.lock:
                run_alone(ring, kernels.FILL_KERNEL, -(-count // EACH), arguments)

        ring.pool.run_aside(work)


def run_alone(ring: Ring, kernel: str, threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel that needs nothing of the host's, with work for so many threads, and wait for it."""
    try:
        ring.work.launch(kernel, launch_blocks(ring, threads), kernels.THREADS, arguments)
        ring.work.record().synchronize()
    except BaseException:
        ring.abandon()  # nobody may let go of what a kernel still works on
        raise


def launch_blocks(ring: Ring, threads: int) -> int:
    """Return how many blocks serve so many threads' work, or as many as the device runs at once."""
    most = ring.device.multiprocessors * max(1, ring.device.threads // kernels.THREADS)
    return max(1, min(most, -(-threads // kernels.THREADS)))


def portions_of(total: Total, ring: Ring) -> Iterator[Bytes]:
    """Yield the bytes of a total's arrays, one portion after the other; each is gone when the next is asked for."""
    for array, start, length in _cut(total, ring):
        yield download(ring, array.address + start, length)


def load_portions(total: Total, ring: Ring) -> Iterator[Bytes]:
    """Yield memory to be filled with the bytes of a total's arrays, one portion after the other."""
    for array, start, length in _cut(total, ring):
        memory = ring.staging(length)
        yield memory
        ring.work.upload(array.address + start, memory)
        ring.work.record().synchronize()


def download(ring: Ring, address: int, length: int) -> Bytes:
    """Return a copy of some bytes of the device, which is there until the next one is asked for."""
    memory = ring.staging(length)
    ring.work.download(memory, address)
    ring.work.record().synchronize()
    return memory


def fetched(ring: Ring, array: npt.NDArray[Any] | DeviceArray) -> npt.NDArray[Any]:
    """Return an array that is in the host's memory, a copy if it was not."""
    if not isinstance(array, DeviceArray):
        return array
    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    found = np.empty(array.nbytes, np.uint8)
    for start in range(0, array.nbytes, ring.portion_bytes):
        length = min(ring.portion_bytes, array.nbytes - start)
        found[start : start + length] = download(ring, array.address + start, length)
    return found.view(array.dtype).reshape(array.shape)


def _cut(total: Total, ring: Ring) -> Iterator[tuple[DeviceArray, int, int]]:
    for array in (total.values, total.levels):
        for start in range(0, array.nbytes, ring.portion_bytes):
            yield array, start, min(ring.portion_bytes, array.nbytes - start)
