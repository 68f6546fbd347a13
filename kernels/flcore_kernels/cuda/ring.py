"""How bytes get to a device and back: a fixed ring of page-locked pieces, and two streams.

A *piece* is what one launch needs of the host's memory: the tables, and the elements that lie there. It is gathered
into a slot's page-locked memory, copied to the slot's memory on the device by the first stream, and worked on by the
second, which also copies back what came out. Meanwhile the next slot is gathered. A slot is filled anew only when its
work is done and its results have been taken, so that neither memory grows with the model.
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
ALIGNMENT = 256
PIECE_BYTES = 32 << 20
"""What is gathered at once: enough for a copy to run at full rate, little enough to stay in the processor's caches."""

COPY_BYTES = 4 << 20
"""What one thread copies at a time."""

Numbers = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]


def padded(lengths: Any) -> Any:
    """Return lengths in bytes rounded up to what a slot gives each item."""
    return -(-lengths // ALIGNMENT) * ALIGNMENT


class Slot:
    """Page-locked memory, as much on the device, and the work that uses both."""

    def __init__(self) -> None:
        self.host: Bytes = np.zeros(0, np.uint8)
        self.memory: Memory | None = None
        self.done: Event | None = None
        self.take: Callable[[], None] | None = None

    def hold(self, device: Device, nbytes: int) -> None:
        """Have at least so many bytes."""
        if self.host.size < nbytes:
            self.host, self.memory = np.zeros(0, np.uint8), None
            self.memory = device.allocate(nbytes)
            self.host = device.page_locked(nbytes)

    def complete(self) -> None:
        """Wait for the work, and take its results."""
        done, take = self.done, self.take
        self.done = self.take = None
        if done is not None:
            done.synchronize()
        if take is not None:
            take()


class Ring:
    """The slots of one device, filled in turn. The lock is held while they, or its streams, are used."""

    def __init__(self, device: Device, pool: Pool, piece_bytes: int = PIECE_BYTES) -> None:
        self.device, self.pool, self.piece_bytes = device, pool, piece_bytes
        self.upload, self.work = device.stream(), device.stream()
        self.lock = threading.RLock()
        self._slots = [Slot() for _ in range(SLOTS)]
        self._turn = 0
        self._staging: Bytes = np.zeros(0, np.uint8)

    def piece(self, nbytes: int) -> "Piece":
        """Return the next slot's memory, of at least `nbytes`, to be filled."""
        slot = self._slots[self._turn % SLOTS]
        self._turn += 1
        slot.complete()
        slot.hold(self.device, nbytes)
        return Piece(self, slot)

    def drain(self) -> None:
        """Wait for all work, and take all results, in the order in which it was asked for."""
        for turn in range(self._turn, self._turn + SLOTS):
            self._slots[turn % SLOTS].complete()

    def abandon(self) -> None:
        """Wait for all work, and take nothing: what it was for has failed, perhaps before a slot knew of its work."""
        for slot in self._slots:
            slot.take = slot.done = None
        for stream in (self.upload, self.work):
            stream.record().synchronize()

    def staging(self, nbytes: int) -> Bytes:
        """Return page-locked memory for what is copied by itself; the same each time, unless more is asked for."""
        if self._staging.size < nbytes:
            self._staging = self.device.page_locked(nbytes)
        return self._staging[:nbytes]


class Piece:
    """A slot being filled: first results, then answers, then what goes to the device.

    Results only come back, answers (small arrays) go there and come back, everything else only goes there.
    """

    def __init__(self, ring: Ring, slot: Slot) -> None:
        self._ring, self._slot = ring, slot
        self._size, self._first_up, self._stop_down = 0, 0, 0
        self._answers: list[tuple[int, npt.NDArray[Any]]] = []
        self._copies: list[tuple[int, int, int]] = []
        self._results: list[tuple[int, int, int]] = []

    def results(self, targets: Addresses, lengths: Numbers) -> Addresses:
        """Return where to write results that are then copied to addresses of the host's memory."""
        offsets = self._rooms(lengths)
        self._results += zip(offsets.tolist(), targets.tolist(), lengths.tolist(), strict=True)
        self._first_up = self._stop_down = self._size
        return self._addresses(offsets)

    def answer(self, initial: npt.NDArray[Any]) -> np.uint64:
        """Have a small array copied there, and what the kernel made of it copied back into it."""
        offset = self._put(initial)
        self._answers.append((offset, initial))
        self._stop_down = self._size
        return np.uint64(self._base() + offset)

    def put(self, array: npt.NDArray[Any]) -> np.uint64:
        """Copy a small array; returns where it will be on the device."""
        return np.uint64(self._base() + self._put(array))

    def gather(self, sources: Addresses, lengths: Numbers) -> Addresses:
        """Have bytes of the host's memory copied, by their addresses; returns where each will be on the device."""
        offsets = self._rooms(lengths)
        self._copies += zip(sources.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        return self._addresses(offsets)

    def run(self, launch: Callable[[Stream], None]) -> None:
        """Gather and send it, work on it, and ask for what comes back. Returns before any of that is done."""
        slot, ring = self._slot, self._ring
        here = slot.host.__array_interface__["data"][0]
        _copy_all(ring.pool, [(source, here + offset, length) for source, offset, length in self._copies])
        ring.upload.upload(self._base() + self._first_up, slot.host[self._first_up : self._size])
        ring.work.wait(ring.upload.record())
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
        offset = int(self._rooms(np.array([array.nbytes], np.int64))[0])
        self._slot.host[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return offset

    def _base(self) -> int:
        return 0 if self._slot.memory is None else self._slot.memory.address

    def _addresses(self, offsets: Numbers) -> Addresses:
        return offsets.astype(np.uint64) + np.uint64(self._base())

    def _rooms(self, lengths: Numbers) -> Numbers:
        ends = self._size + np.cumsum(padded(lengths))
        self._size = int(ends[-1]) if ends.size else self._size
        offsets: Numbers = ends - padded(lengths)
        return offsets


def _copy_all(pool: Pool, copies: Sequence[tuple[int, int, int]]) -> None:
    """Copy (from, to, bytes) of the host's memory, in threads where there is much of it."""
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
