"""Totals in a device's memory: their arrays, and copies of them to host memory and back."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels.cuda import kernels
from flcore_kernels.cuda.device import Bytes
from flcore_kernels.cuda.ring import Ring
from flcore_kernels.device_arrays import DeviceArray, Flags
from flcore_kernels.totals import Total

FILL_BYTES, FILLS_PER_THREAD = 2, 8
"""The kernel `fill` writes values of 2 bytes (levels are int16), and a thread writes 8 of them at once: 16 bytes."""


class OwnArray(DeviceArray):
    """A flat array in the backend's own device memory."""

    @classmethod
    def zeros(cls, ring: Ring, count: int, dtype: np.dtype[Any]) -> "OwnArray":
        """Return `count` zeros, or raise `OutOfDeviceMemory`."""
        memory = ring.device.allocate(max(1, count * dtype.itemsize))
        array = cls(memory.address, (count,), dtype, ring.device.number, Flags(True, True), (memory, ring))
        array.fill(0)
        return array

    def fill(self, value: int) -> None:
        """Set all elements to `value`. Elements of another size than 2 bytes can be set to 0 only."""
        ring: Ring = self.owner[1]
        count = self.nbytes // FILL_BYTES
        if not count:
            return
        arguments = np.uint64(self.address), np.int64(count), np.int16(value)

        def work() -> None:
            with ring.lock:
                run_alone(ring, kernels.FILL_KERNEL, -(-count // FILLS_PER_THREAD), arguments)

        ring.pool.run_aside(work)


def run_alone(ring: Ring, kernel: str, threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel that needs no host memory, with work for `threads` threads, and wait for it."""
    try:
        ring.work.launch(kernel, launch_blocks(ring, threads), kernels.THREADS, arguments)
        ring.work.record().synchronize()
    except BaseException:
        ring.abandon()  # the caller's memory must not be freed while a kernel uses it
        raise


def launch_blocks(ring: Ring, threads: int) -> int:
    """Return how many blocks have `threads` threads, but at most as many as the device runs at once."""
    most = ring.device.multiprocessors * max(1, ring.device.threads // kernels.THREADS)
    return max(1, min(most, -(-threads // kernels.THREADS)))


def portions_of(total: Total, ring: Ring) -> Iterator[Bytes]:
    """Yield the bytes of a total's arrays in portions. Each is overwritten by the next."""
    for array, start, length in _cut(total, ring):
        yield download(ring, array.address + start, length)


def load_portions(total: Total, ring: Ring) -> Iterator[Bytes]:
    """Yield host memory, a portion at a time, which the caller fills; it is then copied to a total's arrays."""
    for array, start, length in _cut(total, ring):
        memory = ring.staging(length)
        yield memory
        ring.work.upload(array.address + start, memory)
        ring.work.record().synchronize()


def download(ring: Ring, address: int, length: int) -> Bytes:
    """Return a copy of a range of device memory, in memory that the next copy overwrites."""
    memory = ring.staging(length)
    ring.work.download(memory, address)
    ring.work.record().synchronize()
    return memory


def fetched(ring: Ring, array: npt.NDArray[Any] | DeviceArray) -> npt.NDArray[Any]:
    """Return an array in host memory; a copy, if it is on the device."""
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
