"""One client's update, staged: checked as it arrives, chunk by chunk, until it is committed whole or dropped.

A chunk is a piece on the wire, so received buffers are staged as they are, without a copy.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Quantized, storage_dtype
from flcore_layout import DTYPES, SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import body_bytes

from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staging import DiskStore, Staging
from flcore.errors import SpecError, StagingError, TensorMismatch
from flcore.model.arrays import AnyArrays, as_array, flatten
from flcore.model.compression import KernelArray, view_body
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.spec import ModelSpec, SegmentSpec
from flcore.model.wire_format import WireFormat

MANY_GAPS = 32


@dataclass
class _ChunkRequest:
    """Memory for the next chunk: `acquired` is cancelled if it needs none, `granted` is done once it may come."""

    nbytes: int
    acquired: "Future[bool]" = field(default_factory=Future)
    granted: "Future[None]" = field(default_factory=Future)


class StagedUpdate:
    """An update being received, in memory if the quota fits all of it, or else on disk.

    Each element is taken once, by one of two methods: `append` keeps whole chunks, in order; `write` copies elements of
    a named tensor. Both may be called once `allocate` is done.
    """

    def __init__(
        self, wire_format: WireFormat, combiner: Combiner, staging: Staging, client: str, weight: float
    ) -> None:
        self.client, self.weight = client, weight
        self._wire_format, self._staging, self._quota = wire_format, staging, staging.quota
        self._limits, self._coefficient = combiner.limits, combiner.coefficient(weight)
        self._lock = threading.RLock()
        self._reservation: Future[bool] | None = None
        self._reserved_bytes = self._acquired_bytes = 0
        # Parts of the quota that are released once the lock is released.
        self._bytes_to_release = self._bytes_to_unreserve = 0
        self._allocated: Future[None] = Future()
        self._allocated.set_running_or_notify_cancel()  # a caller that stops waiting cannot cancel it for others
        self._is_open = self._is_discarded = False
        self._bodies: dict[SegmentRange, Buffer] = {}
        self._disk: DiskStore | None = None
        self._allocation_error: StagingError | None = None
        self._is_sealed = False
        self._appended = 0
        self._request: _ChunkRequest | None = None
        self._written: dict[str, int] = {}

    @property
    def is_in_memory(self) -> bool:
        """Whether its chunks go into memory."""
        return self._is_open and self._disk is None

    @property
    def is_on_disk(self) -> bool:
        """Whether its chunks go into files."""
        return self._disk is not None

    def allocate(self, *, may_wait: bool) -> "Future[None]":
        """Reserve memory, queueing for it with `may_wait`, or else make a directory on disk. Idempotent."""
        with self._lock:
            is_first = self._reservation is None
            reservation = self._reservation = self._reservation or self._quota.reserve(
                self._wire_format.nbytes, may_wait=may_wait
            )
        if is_first:
            reservation.add_done_callback(self._set_allocated)
        return self._allocated

    def acquire_next(self) -> "Future[None]":
        """Request memory for the next chunk; the future is done once it may arrive. Idempotent; never blocks."""
        with self._lock:
            request, is_new = self._request, self._request is None
            if request is None:
                piece = self._wire_format.pieces[min(self._appended, len(self._wire_format.pieces) - 1)]
                request = self._request = _ChunkRequest(body_bytes(piece.dtype, piece.count))
                request.granted.set_running_or_notify_cancel()  # so that no caller can cancel it for others
                if self.is_in_memory and self._appended < len(self._wire_format.pieces):
                    request.acquired = self._quota.acquire(request.nbytes)
                else:
                    request.acquired.cancel()
        if is_new:
            # Also where it goes to disk meanwhile.
            request.acquired.add_done_callback(lambda _: request.granted.set_result(None))
        return request.granted

    def append(self, piece: SegmentRange, body: Buffer) -> None:
        """Append the next chunk, as it is on the wire. Keeps the buffer without a copy. Waits for `acquire_next`.

        Raises `NonFinite` or `OutOfBounds`, naming the tensor, `TensorMismatch` where a gap is not zero or the chunk is
        not the next one, and `StagingError` where the disk does not take it.
        """
        if self._appended == len(self._wire_format.pieces) or piece != self._wire_format.pieces[self._appended]:
            raise self._mismatch(f"{piece} came, expected piece {self._appended} of the model")
        segment = self._wire_format.spec.segments[piece.segment]
        part = view_body(piece.dtype, piece.count, body)
        self._limits.check(piece, part, self._coefficient, self.client)
        _check_gaps(segment, piece.first, part, self.client)
        self.acquire_next().result()
        with self._locked():
            self._require_open()
            self._use_request()
            if self._disk is None:
                self._bodies[piece] = body
            else:
                self._disk.append(piece, body)
            self._appended += 1

    def write_all(self, arrays: AnyArrays) -> None:
        """Copy a whole model: named arrays of any kind, nested or not (see `flcore.aggregate`).

        Raises `TensorMismatch` unless it has the model's tensors, by name, shape and dtype, and what `append` raises.
        """
        try:
            theirs = ModelSpec.of(arrays)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        self._wire_format.spec.require_match(theirs, client=self.client)
        for name, array in flatten(arrays).items():
            self.write(name, array)

    def write(self, name: str, buffer: Any, start: int = 0) -> None:
        """Copy the next elements of tensor `name`, in its own (C) order; `start` is the index of the first of them.

        They come in an array of any kind (see `flcore.aggregate`): a flat one, or one of the tensor's shape.

        Raises `TensorMismatch` for another dtype, an unknown name, or elements that are not the next ones, and what
        `append` raises.
        """
        if name not in self._wire_format.tensor_spans:
            raise self._mismatch("the model has no tensor of this name", name)
        index, span = self._wire_format.tensor_spans[name]
        try:
            array = as_array(buffer, name)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        if array.dtype != NUMPY_DTYPES[span.tensor.dtype] or (array.ndim > 1 and array.shape != span.tensor.shape):
            expected, got = (f"{each.dtype} of shape {each.shape}" for each in (span.tensor, array))
            raise self._mismatch(f"expected {expected}, got {got}", name)
        values = np.ascontiguousarray(array).reshape(-1)
        stop, written = start + values.size, self._written.get(name, 0)
        if start != written or stop > span.tensor.size:
            came = f"elements {start} to {stop} came; the next is {written}, the tensor has {span.tensor.size}"
            raise self._mismatch(came, name)
        self._append_elements(index, span.start + start, values)
        self._written[name] = written + values.size

    def require_complete(self) -> None:
        """Raise `TensorMismatch` unless every element is in."""
        if self._appended == len(self._wire_format.pieces):
            return
        for tensor in self._wire_format.spec.tensors:
            written = self._written.get(tensor.name, 0)
            if written != tensor.size:
                raise self._mismatch(f"only {written} of {tensor.size} elements came", tensor.name)

    def seal(self) -> None:
        """Take note that every element is in: an update on disk can be opened from now on (`flcore.open_update`)."""
        with self._lock:
            self._is_sealed = True
            if self._disk is not None and not self._bodies:  # otherwise once the last chunk is on disk
                self._disk.seal()

    def _mismatch(self, why: str, tensor: str = "") -> TensorMismatch:
        return TensorMismatch(why, client=self.client, tensor=tensor)

    def spill(self) -> None:
        """Spill the chunks to disk and release their memory: the update is idle, or no memory is granted.

        Chunks go one by one, and each stays where it is until it is on disk: others may add chunks, take them, or let
        all go meanwhile, and where the disk is full (`StagingError`) nothing is lost that was there.
        """
        if self._reservation is None or self._reservation.cancel():  # cancelled: `_set_allocated` goes to disk
            return
        with self._lock:
            if self.is_in_memory:
                self._disk = self._new_disk_store()
            request = self._request
        if request is not None:
            request.acquired.cancel()  # the next chunk goes to disk
        while self._spill_one():
            pass

    def _spill_one(self) -> bool:
        """Bring one chunk from memory to disk; say whether there may be more."""
        with self._locked():
            if self._disk is None:
                return False
            chunk = next(iter(self._bodies.items()), None)
            if chunk is None:
                if self._is_sealed:
                    self._disk.seal()
                self._release(self._acquired_bytes)
                self._unreserve()
                return False
            self._disk.append(*chunk)
            self._discard_chunk(chunk[0])
            return True

    def drain(self) -> None:
        """From now on chunks are taken one after the other, until none is left: the next update may come."""
        with self._locked():
            self._unreserve()

    def read_range(self, piece: SegmentRange) -> KernelArray:
        """Return a range of a chunk as the kernels take it. Raises `StagingError` where it cannot be read back."""
        chunk, row = self._wire_format.piece_at(piece.segment, piece.first), DTYPES[piece.dtype]
        offset = piece.first - chunk.first
        first = row.elements_at(chunk.count) + offset * row.itemsize
        codes = self._read_bytes(chunk, first, first + piece.count * row.itemsize)
        elements = np.frombuffer(codes, storage_dtype(piece.dtype))
        if not row.block:
            return elements
        first = offset // row.block * 4
        scales = self._read_bytes(chunk, first, first + -(-piece.count // row.block) * 4)
        return Quantized(elements, np.frombuffer(scales, np.float32))

    def discard_chunk(self, piece: SegmentRange) -> None:
        """Free a chunk that is not read any more, and its part of the quota."""
        with self._locked():
            self._discard_chunk(piece)

    def discard(self) -> None:
        """Free all elements and their part of the quota. Idempotent."""
        with self._locked():
            disk, self._disk, self._bodies = self._disk, None, {}
            self._is_open, self._is_discarded = False, True
            if disk is not None:
                disk.discard()
            self._release(self._acquired_bytes)
            self._unreserve()
            request, self._request = self._request, None
        if self._reservation is not None:
            self._reservation.cancel()  # if it still waits for memory
        if request is not None and not request.acquired.cancel():
            self._quota.release(request.nbytes)

    def _set_allocated(self, reservation: "Future[bool]") -> None:
        """The reservation was granted or refused."""
        in_memory = not reservation.cancelled() and reservation.result()
        with self._locked():
            self._reserved_bytes = self._wire_format.nbytes if in_memory else 0
            try:
                if not self._is_discarded:
                    self._disk = None if in_memory else self._new_disk_store()
                    self._is_open = True
            except StagingError as error:
                self._allocation_error = error
            if not self._is_open:
                self._unreserve()
        self._allocated.set_result(None)  # also where there is no place: the first chunk is told why

    def _new_disk_store(self) -> DiskStore:
        return DiskStore(self._staging, self._wire_format, self.client, self.weight)

    def _use_request(self) -> None:
        """Use the memory of the next chunk, or release it if the update was spilled meanwhile."""
        request, self._request = self._request, None
        if request is not None and not request.acquired.cancelled():
            self._acquired_bytes += request.nbytes
            if not self.is_in_memory:
                self._release(request.nbytes)

    def _acquire(self, nbytes: int) -> None:
        """Wait until a chunk may come into memory, if that is where chunks are."""
        if not self.is_in_memory:
            return
        self._quota.acquire(nbytes).result()
        with self._locked():
            self._acquired_bytes += nbytes
            if self.is_on_disk or self._is_discarded:  # meanwhile
                self._release(nbytes)

    def _discard_chunk(self, piece: SegmentRange) -> None:
        if self._bodies.pop(piece, None) is not None:
            self._release(body_bytes(piece.dtype, piece.count))

    def _release(self, nbytes: int) -> None:
        self._acquired_bytes -= nbytes
        self._bytes_to_release += nbytes

    def _unreserve(self) -> None:
        self._bytes_to_unreserve, self._reserved_bytes = self._bytes_to_unreserve + self._reserved_bytes, 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; release freed memory afterwards, as that calls back the requests that wait for it."""
        try:
            with self._lock:
                yield
        finally:
            with self._lock:
                left, self._bytes_to_release = self._bytes_to_release, 0
                released, self._bytes_to_unreserve = self._bytes_to_unreserve, 0
            if left:
                self._quota.release(left)
            if released:
                self._quota.cancel_reservation(released)

    def _append_elements(self, index: int, first: int, values: npt.NDArray[Any]) -> None:
        segment = self._wire_format.spec.segments[index]
        if self._wire_format.dtypes[index] != segment.dtype:
            narrow = self._wire_format.dtypes[index]
            raise self._mismatch(f"elements of {segment.dtype} travel as {narrow} here: expected whole pieces (append)")
        stored = values.view(storage_dtype(segment.dtype))
        itemsize, position = NUMPY_DTYPES[segment.dtype].itemsize, 0
        while position < stored.size:
            piece = self._wire_format.piece_at(index, first + position)
            offset = first + position - piece.first
            part = stored[position : position + piece.count - offset]
            written = SegmentRange(index, segment.dtype, first + position, part.size)
            self._limits.check(written, part, self._coefficient, self.client)
            self._write_bytes(piece, offset * itemsize, part.view(np.uint8).data)
            position += part.size

    def _write_bytes(self, piece: SegmentRange, begin: int, data: Buffer) -> None:
        """Copy bytes into a chunk, starting at its byte `begin`. Bytes that are never written are zero."""
        nbytes = body_bytes(piece.dtype, piece.count)
        if piece not in self._bodies:
            self._acquire(nbytes)
        with self._lock:
            self._require_open()
            if piece not in self._bodies and self._disk is not None:
                self._disk.write_bytes(piece, begin, data)
                return
            if piece not in self._bodies:
                self._bodies[piece] = np.zeros(nbytes, np.uint8).data
            memoryview(self._bodies[piece])[begin : begin + len(data)] = data

    def _read_bytes(self, chunk: SegmentRange, begin: int, end: int) -> Buffer:
        """Return some bytes of a chunk: of one in memory without a copy."""
        with self._lock:
            self._require_open()
            if chunk in self._bodies or self._disk is None:
                return memoryview(self._bodies[chunk])[begin:end]
            disk = self._disk
        return disk.read_bytes(chunk, begin, end)

    def _require_open(self) -> None:
        if not self._is_open:
            raise self._allocation_error or StagingError("it was discarded, or never begun", client=self.client)


def _check_gaps(segment: SegmentSpec, first: int, part: KernelArray, client: str) -> None:
    """Raise `TensorMismatch` unless what lies between the tensors of a segment, from `first` on, is zero."""
    values = part.codes if isinstance(part, Quantized) else part
    bounds = segment.gaps(first, first + values.size) - first
    if len(bounds) > MANY_GAPS:  # one call for thousands of them
        bits = values.view(f"u{values.itemsize}")
        padded = bounds if bounds[-1] < bits.size else bounds[:-1]
        if not np.bitwise_or.reduceat(bits, padded)[::2].any():
            return
    for begin, end in bounds.reshape(-1, 2).tolist():
        if values[begin:end].any():
            tensor, _ = segment.locate(first + begin)
            raise TensorMismatch("the gap behind it is not zero", client=client, tensor=tensor.name)
