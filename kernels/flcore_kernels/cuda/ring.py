"""How bytes get to a device and back: a ring of three slots of page-locked memory, and two streams.

A *portion* is what one launch needs of host memory: the tables of rows, and the elements that lie there. The CPU
gathers it into a slot's page-locked memory. The first stream copies it to the slot's memory on the device. The second
stream waits for that copy, runs the kernel and copies results back. Meanwhile the CPU gathers the next portion. A slot
is reused only after its results have been taken, so that memory on both sides is bounded, whatever the model's size.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels.cuda.device import Bytes, Device, Event, Memory, Stream
from flcore_kernels.threads import Pool

SLOTS = 3
"""One slot is gathered, one is copied to the device, and one is worked on."""

SLOT_ALIGNMENT_BYTES = 256
"""Items of a slot begin at multiples of what CUDA's allocations do: kernels load vectors of 16 bytes."""

PORTION_BYTES = 32 << 20
"""Bytes of a portion: enough for a copy to run at full rate, little enough to stay in the CPU's last-level cache."""

COPY_BYTES = 4 << 20
"""Bytes that one thread of the CPU copies at a time."""

Numbers = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]


def padded(lengths: Any) -> Any:
    """Return lengths in bytes, rounded up to the alignment of a slot's items."""
    return -(-lengths // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES


class Slot:
    """Page-locked memory, as much memory on the device, and the work that uses both."""

    def __init__(self) -> None:
        self.host: Bytes = np.zeros(0, np.uint8)
        self.memory: Memory | None = None
        self.done: Event | None = None
        self.take: Callable[[], None] | None = None

    def hold(self, device: Device, nbytes: int) -> None:
        """Make both memories at least `nbytes` large. The slot has no work."""
        if self.host.size < nbytes:
            self.host, self.memory = np.zeros(0, np.uint8), None  # freed first: a budget may not hold both
            self.memory = device.allocate(nbytes)
            self.host = device.page_locked(nbytes)

    def complete(self) -> None:
        """Wait for the work, and take its results."""
        # Forgotten first, so that a slot whose wait or copy fails is not completed a second time.
        done, take = self.done, self.take
        self.done = self.take = None
        if done is not None:
            done.synchronize()
        if take is not None:
            take()


class Ring:
    """The slots and the two streams of one device. A caller holds `lock` while it uses either."""

    def __init__(self, device: Device, pool: Pool, portion_bytes: int = PORTION_BYTES) -> None:
        self.device, self.pool, self.portion_bytes = device, pool, portion_bytes
        self.upload, self.work = device.stream(), device.stream()
        self.lock = threading.RLock()
        self._slots = [Slot() for _ in range(SLOTS)]
        self._turn = 0
        self._staging: Bytes = np.zeros(0, np.uint8)

    def portion(self, nbytes: int) -> "Portion":
        """Return the next slot's memory, of at least `nbytes`, to be filled."""
        slot = self._slots[self._turn % SLOTS]
        self._turn += 1
        slot.complete()
        slot.hold(self.device, nbytes)
        return Portion(self, slot)

    def drain(self) -> None:
        """Wait for all work, and take all results, oldest first."""
        for turn in range(self._turn, self._turn + SLOTS):
            self._slots[turn % SLOTS].complete()

    def abandon(self) -> None:
        """Wait for all work, and take no results, after a call has failed.

        Waits for the streams, not for the slots: the failure may have come after a launch and before its slot knew.
        """
        for slot in self._slots:
            slot.take = slot.done = None
        for stream in (self.upload, self.work):
            stream.record().synchronize()

    def staging(self, nbytes: int) -> Bytes:
        """Return page-locked memory for a single copy. It is the same memory each time."""
        if self._staging.size < nbytes:
            self._staging = self.device.page_locked(nbytes)
        return self._staging[:nbytes]


class Portion:
    """A slot that is being filled, in this order: results, answers, everything else.

    Results only come back. Answers (small arrays) go to the device and come back. Everything else only goes there. In
    this order, what goes and what comes back are one contiguous range each: one copy in each direction per launch.
    """

    def __init__(self, ring: Ring, slot: Slot) -> None:
        self._ring, self._slot = ring, slot
        self._size, self._first_up, self._stop_down = 0, 0, 0
        self._answers: list[tuple[int, npt.NDArray[Any]]] = []
        self._copies: list[tuple[int, int, int]] = []
        self._results: list[tuple[int, int, int]] = []

    def results(self, targets: Addresses, lengths: Numbers) -> Addresses:
        """Reserve room for results. Returns its addresses on the device; results are then copied to `targets`."""
        offsets = self._reserve(lengths)
        self._results += zip(offsets.tolist(), targets.tolist(), lengths.tolist(), strict=True)
        self._first_up = self._stop_down = self._size
        return self._addresses(offsets)

    def answer(self, initial: npt.NDArray[Any]) -> np.uint64:
        """Send a small array that the kernel changes, and that is copied back. Returns its address on the device."""
        offset = self._put(initial)
        self._answers.append((offset, initial))
        self._stop_down = self._size
        return np.uint64(self._base() + offset)

    def put(self, array: npt.NDArray[Any]) -> np.uint64:
        """Send a small array. Returns its address on the device."""
        return np.uint64(self._base() + self._put(array))

    def gather(self, sources: Addresses, lengths: Numbers) -> Addresses:
        """Send ranges of host memory, by their addresses. Returns their addresses on the device."""
        offsets = self._reserve(lengths)
        self._copies += zip(sources.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        return self._addresses(offsets)

    def run(self, launch: Callable[[Stream], None]) -> None:
        """Gather the portion, and enqueue its upload, the kernel and the download. Returns before these are done."""
        slot, ring = self._slot, self._ring
        here = slot.host.__array_interface__["data"][0]
        _copy_all(ring.pool, [(source, here + offset, length) for source, offset, length in self._copies])
        ring.upload.upload(self._base() + self._first_up, slot.host[self._first_up : self._size])
        ring.work.wait(ring.upload.record())
        # The download is on the kernel's stream, which orders it after the kernel. The next portion's upload is not.
        launch(ring.work)
        if self._stop_down:
            ring.work.download(slot.host[: self._stop_down], self._base())
        slot.take, slot.done = self._take, ring.work.record()

    def _take(self) -> None:
        host = self._slot.host
        for offset, answer in self._answers:
            answer.reshape(-1).view(np.uint8)[:] = host[offset : offset + answer.nbytes]
        here = host.__array_interface__["data"][0]
        _copy_all(self._ring.pool, [(here + offset, target, length) for offset, target, length in self._results])

    def _put(self, array: npt.NDArray[Any]) -> int:
        offset = int(self._reserve(np.array([array.nbytes], np.int64))[0])
        self._slot.host[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return offset

    def _base(self) -> int:
        return 0 if self._slot.memory is None else self._slot.memory.address

    def _addresses(self, offsets: Numbers) -> Addresses:
        return offsets.astype(np.uint64) + np.uint64(self._base())

    def _reserve(self, lengths: Numbers) -> Numbers:
        ends = self._size + np.cumsum(padded(lengths))
        self._size = int(ends[-1]) if ends.size else self._size
        offsets: Numbers = ends - padded(lengths)
        return offsets


def _copy_all(pool: Pool, copies: Sequence[tuple[int, int, int]]) -> None:
    """Copy ranges of host memory, each (source, target, bytes), on several threads if they are large."""
    cut = [
        (source + at, target + at, min(COPY_BYTES, length - at))
        for source, target, length in copies
        for at in range(0, length, COPY_BYTES)
    ]
    shares: list[list[tuple[int, int, int]]] = [[]]
    size = 0
    for copy in cut:
        if size >= COPY_BYTES:
            shares.append([])
            size = 0
        shares[-1].append(copy)
        size += copy[2]

    def work(share: int) -> None:
        for source, target, length in shares[share]:
            ctypes.memmove(target, source, length)

    pool.run(work, len(shares))
