"""The chunks of one staged update: in memory within the quota, or on disk.

A chunk is a piece on the wire, so received buffers are staged as they are, without a copy.

Who holds which bytes of the quota:

- The *reservation* (`_reserved_bytes`): all chunks, from `allocate` until folding begins, or until the last chunk is on
  disk, or until `discard`.
- The *next chunk* (`_request`): one chunk that was granted and has not arrived. A transfer asks for it before it gives
  the client credit, so that no thread waits in `append`.
- The *chunks in memory* (`_acquired_bytes`): each until it is folded, spilled or discarded.

Order of locks: `_lock` first, then the quota's. Acquiring in `_lock` is safe, as the future's callbacks are added after
it. Releasing is not: it completes the futures of other updates, whose callbacks take *their* `_lock`. So released bytes
are only counted in `_lock`, and go back to the quota after it (`_locked`).
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from flcore_layout import SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import body_bytes

from flcore.aggregation.kept_staging import KeptStaging, KeptStore
from flcore.aggregation.staging import DiskStore, Staging
from flcore.errors import StagingError
from flcore.model.wire_format import WireFormat


@dataclass
class _ChunkRequest:
    """The request for the next chunk's memory.

    `acquired` is the quota's future; it is cancelled if the chunk goes to disk. `granted` is done in both cases: the
    chunk may arrive.
    """

    nbytes: int
    acquired: "Future[bool]" = field(default_factory=Future)
    granted: "Future[None]" = field(default_factory=Future)


class StagedChunks:
    """The bytes of one update. Methods may be called from any thread; `append` and `write_bytes` wait for memory."""

    def __init__(
        self, wire_format: WireFormat, staging: Staging | KeptStaging, client: str, weight: float, upload_key: str = ""
    ) -> None:
        self._wire_format, self._staging, self._quota = wire_format, staging, staging.quota
        self._client, self._weight, self._upload_key = client, weight, upload_key
        self.appended = 0
        """How many whole chunks have been appended."""
        self._lock = threading.RLock()
        self._reservation: Future[bool] | None = None
        self._reserved_bytes = self._acquired_bytes = 0
        # Bytes that go back to the quota after `_lock` is released.
        self._chunk_bytes_to_release = self._reserved_bytes_to_release = 0
        self._allocated: Future[None] = Future()
        self._allocated.set_running_or_notify_cancel()  # a caller that stops waiting cannot cancel it for others
        self._is_open = self._is_discarded = self._is_sealed = False
        self._bodies: dict[SegmentRange, Buffer] = {}
        self._disk: DiskStore | None = None
        # The files that chunks in memory are written to as well (`KeptStaging`).
        self._copy: DiskStore | None = None
        self._has_copy = False
        self._allocation_error: StagingError | None = None
        self._request: _ChunkRequest | None = None

    @property
    def is_in_memory(self) -> bool:
        """Whether chunks go into memory."""
        return self._is_open and self._disk is None

    @property
    def is_on_disk(self) -> bool:
        """Whether chunks go to disk. While `spill` runs, some are still in memory."""
        return self._disk is not None

    @property
    def directory(self) -> str:
        """The name of the directory with the chunks; empty if they are in memory alone."""
        store = self._disk or self._copy
        return "" if store is None else store.name

    def adopt(self, store: KeptStore) -> None:
        """Take over the files that an earlier process has left. `appended` is then the number of their whole chunks."""
        self.appended = store.recover(self._wire_format.pieces)
        with self._lock:
            self._disk, self._is_open = store, True
            self._reservation = Future()  # nothing is reserved, and nothing has to be waited for
            self._reservation.cancel()
        self._allocated.set_result(None)

    def allocate(self, *, may_wait: bool) -> "Future[None]":
        """Reserve memory, queueing for it with `may_wait`, or else create a directory on disk. Idempotent."""
        with self._lock:
            is_first = self._reservation is None
            reservation = self._reservation = self._reservation or self._quota.reserve(
                self._wire_format.nbytes, may_wait=may_wait
            )
        if is_first:  # outside the lock, as a reservation that is done calls back at once
            reservation.add_done_callback(self._set_allocated)
        return self._allocated

    def acquire_next(self) -> "Future[None]":
        """Request memory for the next chunk. The future is done once it may arrive. Idempotent; never blocks."""
        with self._lock:
            request, is_new, chunks = self._request, self._request is None, self._wire_format.pieces
            if request is None:
                chunk = chunks[min(self.appended, len(chunks) - 1)]
                request = self._request = _ChunkRequest(body_bytes(chunk.dtype, chunk.count))
                request.granted.set_running_or_notify_cancel()  # so that no caller can cancel it for others
                if self.is_in_memory and self.appended < len(chunks):
                    request.acquired = self._quota.acquire_chunk(request.nbytes)
                else:
                    request.acquired.cancel()
        if is_new:
            # Runs also if the request is cancelled because the update goes to disk.
            request.acquired.add_done_callback(lambda _: request.granted.set_result(None))
        return request.granted

    def append(self, chunk: SegmentRange, body: Buffer) -> None:
        """Keep the next chunk's body, without a copy. Raises `StagingError` if it cannot be kept."""
        self.acquire_next().result()
        with self._locked():
            self._require_open()
            self._use_request()
            store = self._disk or self._copy
            if store is not None:
                store.append(chunk, body)
            if self._disk is None:
                self._bodies[chunk] = body
            self.appended += 1

    def write_bytes(self, chunk: SegmentRange, begin: int, data: Buffer) -> None:
        """Copy bytes into a chunk, starting at its byte `begin`. Bytes that are never written are zero."""
        nbytes = body_bytes(chunk.dtype, chunk.count)
        if chunk not in self._bodies:
            self._acquire(nbytes)
        with self._lock:
            self._require_open()
            if self._has_copy:
                raise StagingError("updates that are kept are written in whole pieces (append)", client=self._client)
            if chunk not in self._bodies and self._disk is not None:
                self._disk.write_bytes(chunk, begin, data)
                return
            if chunk not in self._bodies:
                self._bodies[chunk] = np.zeros(nbytes, np.uint8).data
            memoryview(self._bodies[chunk])[begin : begin + len(data)] = data

    def read_bytes(self, chunk: SegmentRange, begin: int, end: int) -> Buffer:
        """Return bytes of a chunk: a view if it is in memory, a new buffer if it is on disk."""
        with self._lock:
            self._require_open()
            if chunk in self._bodies or self._disk is None:
                return memoryview(self._bodies[chunk])[begin:end]
            disk = self._disk
        return disk.read_bytes(chunk, begin, end)

    def seal(self) -> None:
        """Record that all chunks are there. From now on, an update on disk can be opened (`flcore.open_update`).

        Raises:
            StagingError: The update is to be kept (`KeptStaging`), and the disk does not.
        """
        with self._lock:
            store = None if self._is_sealed else self._disk or self._copy
            if self._bodies and not self._has_copy:
                self._is_sealed, store = True, None  # if a spill is running, it seals after the last chunk
        if store is not None:
            store.seal()  # not in the lock: it may wait for the disk
            with self._lock:
                self._is_sealed = True

    def release_files(self) -> None:
        """Let `discard` remove the files, although they were sealed: the update is not on record."""
        with self._lock:
            store = self._disk or self._copy
            if store is not None:
                store.release()

    def spill(self) -> None:
        """Move the chunks to disk and release their memory.

        Chunks move one by one, and each stays in memory until it is on disk. In between, other threads may append, read
        or discard chunks, and a full disk (`StagingError`) loses nothing.
        """
        # A reservation that still waits is cancelled; `_set_allocated` then creates the directory.
        if self._reservation is None or self._reservation.cancel():
            return
        with self._lock:
            if self.is_in_memory:
                self._disk, self._copy = self._copy or self._create_store(), None
            request = self._request
        if request is not None:
            request.acquired.cancel()  # the next chunk goes to disk; not in the lock, as cancelling calls back
        while self._spill_one():
            pass

    def release_reservation(self) -> None:
        """Release the reservation, because chunks begin to be freed: the next update may be received."""
        with self._locked():
            self._release_reservation()

    def discard_chunk(self, chunk: SegmentRange) -> None:
        """Free a chunk in memory that will not be read again."""
        with self._locked():
            self._discard_chunk(chunk)

    def discard(self) -> None:
        """Free all chunks, in memory and on disk, and everything held of the quota. Idempotent."""
        with self._locked():
            disk, self._disk, self._copy, self._bodies = self._disk or self._copy, None, None, {}
            self._is_open, self._is_discarded = False, True
            if disk is not None:
                disk.discard()
            self._release_chunks(self._acquired_bytes)
            self._release_reservation()
            request, self._request = self._request, None
        if self._reservation is not None:
            self._reservation.cancel()  # if it still waits for memory
        if request is not None and not request.acquired.cancel():
            self._quota.release_chunks(request.nbytes)  # it was granted, and its chunk will not arrive

    def _set_allocated(self, reservation: "Future[bool]") -> None:
        """Open the update in memory or on disk: the reservation was granted, refused or cancelled."""
        in_memory = not reservation.cancelled() and reservation.result()
        with self._locked():
            self._reserved_bytes = self._wire_format.nbytes if in_memory else 0
            try:
                if not self._is_discarded:
                    if not in_memory:
                        self._disk = self._create_store()
                    elif self._staging.keeps_files:
                        self._copy, self._has_copy = self._create_store(), True
                    self._is_open = True
            except StagingError as error:
                self._allocation_error = error
            if not self._is_open:
                self._release_reservation()
        self._allocated.set_result(None)  # also after an error, which the first chunk raises

    def _create_store(self) -> DiskStore:
        return self._staging.create_store(self._wire_format, self._client, self._weight, self._upload_key)

    def _use_request(self) -> None:
        """Count the next chunk's memory as acquired, or release it if the update was spilled meanwhile."""
        request, self._request = self._request, None
        if request is not None and not request.acquired.cancelled():
            self._acquired_bytes += request.nbytes
            if not self.is_in_memory:
                self._release_chunks(request.nbytes)

    def _acquire(self, nbytes: int) -> None:
        """Wait for memory for a chunk, if chunks go into memory."""
        if not self.is_in_memory:
            return
        self._quota.acquire_chunk(nbytes).result()
        with self._locked():
            self._acquired_bytes += nbytes
            if self.is_on_disk or self._is_discarded:  # since the wait began
                self._release_chunks(nbytes)

    def _spill_one(self) -> bool:
        """Move one chunk to disk; return whether there may be more."""
        with self._locked():
            if self._disk is None:
                return False
            chunk = next(iter(self._bodies.items()), None)
            if chunk is None:
                if self._is_sealed:
                    self._disk.seal()
                self._release_chunks(self._acquired_bytes)
                self._release_reservation()
                return False
            if not self._has_copy:
                self._disk.append(*chunk)
            self._discard_chunk(chunk[0])
            return True

    def _discard_chunk(self, chunk: SegmentRange) -> None:
        if self._bodies.pop(chunk, None) is not None:
            self._release_chunks(body_bytes(chunk.dtype, chunk.count))

    def _release_chunks(self, nbytes: int) -> None:
        self._acquired_bytes -= nbytes
        self._chunk_bytes_to_release += nbytes

    def _release_reservation(self) -> None:
        self._reserved_bytes_to_release += self._reserved_bytes
        self._reserved_bytes = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold `_lock`; afterwards give released bytes back to the quota (see the order of locks above)."""
        try:
            with self._lock:
                yield
        finally:
            with self._lock:  # take the counts, so that no other thread releases the same bytes
                chunk_bytes, self._chunk_bytes_to_release = self._chunk_bytes_to_release, 0
                reserved_bytes, self._reserved_bytes_to_release = self._reserved_bytes_to_release, 0
            if chunk_bytes:
                self._quota.release_chunks(chunk_bytes)
            if reserved_bytes:
                self._quota.release_reservation(reserved_bytes)

    def _require_open(self) -> None:
        if not self._is_open:
            raise self._allocation_error or StagingError("it was discarded, or never begun", client=self._client)
