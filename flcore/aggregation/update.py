"""One client's update, staged: checked as it arrives, chunk by chunk, until it is committed whole or dropped.

A chunk is a piece on the wire, so that what a transport received is staged as it came, without a copy.
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
from flcore_transport import WIRE_DTYPES, Buffer, PieceRange, body_bytes

from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staging import OnDisk, Staging
from flcore.errors import SpecError, StagingError, TensorMismatch
from flcore.model.arrays import AnyArrays, as_array, flattened
from flcore.model.dtypes import DTYPES
from flcore.model.form import Form
from flcore.model.narrow import Part, part_of
from flcore.model.spec import ModelSpec, SegmentSpec

MANY_GAPS = 32


@dataclass
class _Entry:
    """Room for the next chunk; `room` is cancelled where the chunk needs none. `done` is when the chunk may come."""

    nbytes: int
    room: "Future[bool]" = field(default_factory=Future)
    done: "Future[None]" = field(default_factory=Future)


class StagedUpdate:
    """An update on its way in, in memory if there is room for all of it, or else on disk.

    Elements enter through one of two doors, each of which takes every element once: `adopt` takes whole chunks in order
    and keeps them; `write` copies elements of a named tensor. Both are open once `begin` is done.
    """

    def __init__(self, form: Form, combiner: Combiner, staging: Staging, client: str, weight: float) -> None:
        self.client, self.weight = client, weight
        self._form, self._staging, self._room = form, staging, staging.room
        self._limits, self._coefficient = combiner.limits, combiner.coefficient(weight)
        self._lock = threading.RLock()
        self._claim: Future[bool] | None = None
        self._claimed = self._held = 0
        self._left = self._released = 0  # of what was held and claimed: given back as soon as the lock is
        self._begun: Future[None] = Future()
        self._begun.set_running_or_notify_cancel()  # a caller that stops waiting cannot cancel it for others
        self._is_open = self._is_dropped = False
        self._bodies: dict[PieceRange, Buffer] = {}
        self._disk: OnDisk | None = None
        self._refusal: StagingError | None = None
        self._is_sealed = False
        self._adopted = 0
        self._entry: _Entry | None = None
        self._written: dict[str, int] = {}

    @property
    def is_in_memory(self) -> bool:
        """Whether its chunks go into memory."""
        return self._is_open and self._disk is None

    @property
    def is_on_disk(self) -> bool:
        """Whether its chunks go into files."""
        return self._disk is not None

    def begin(self, *, may_wait: bool) -> "Future[None]":
        """Find room in memory, perhaps by waiting for it, or else a directory on disk. May be called again."""
        with self._lock:
            is_first = self._claim is None
            claim = self._claim = self._claim or self._room.claim(self._form.nbytes, may_wait=may_wait)
        if is_first:
            claim.add_done_callback(self._settle)
        return self._begun

    def ready(self) -> "Future[None]":
        """Find room for the next chunk; the future is done once it may come. May be called again, and never waits."""
        with self._lock:
            entry, is_new = self._entry, self._entry is None
            if entry is None:
                piece = self._form.pieces[min(self._adopted, len(self._form.pieces) - 1)]
                entry = self._entry = _Entry(body_bytes(piece.dtype, piece.count))
                entry.done.set_running_or_notify_cancel()  # a caller that stops waiting cannot cancel it for others
                if self.is_in_memory and self._adopted < len(self._form.pieces):
                    entry.room = self._room.enter(entry.nbytes)
                else:
                    entry.room.cancel()
        if is_new:
            entry.room.add_done_callback(lambda _: entry.done.set_result(None))  # also where it goes to disk meanwhile
        return entry.done

    def adopt(self, piece: PieceRange, body: Buffer) -> None:
        """Take the next chunk, as it stands on the wire; the buffer is kept, not copied. Waits until it is `ready`.

        Raises `NonFinite` or `OutOfBounds`, naming the tensor, `TensorMismatch` where a gap is not zero or the chunk is
        not the next one, and `StagingError` where the disk does not take it.
        """
        if self._adopted == len(self._form.pieces) or piece != self._form.pieces[self._adopted]:
            raise self._mismatch(f"{piece} came, expected piece {self._adopted} of the model")
        segment = self._form.spec.segments[piece.segment]
        part = part_of(piece.dtype, piece.count, body)
        self._limits.check(piece, part, self._coefficient, self.client)
        _check_gaps(segment, piece.first, part, self.client)
        self.ready().result()
        with self._changing():
            self._require_open()
            self._take_entry()
            if self._disk is None:
                self._bodies[piece] = body
            else:
                self._disk.adopt(piece, body)
            self._adopted += 1

    def write_all(self, arrays: AnyArrays) -> None:
        """Copy a whole model: named arrays of any kind, nested or not (see `flcore.aggregate`).

        Raises `TensorMismatch` unless it has the model's tensors, by name, shape and dtype, and what `adopt` raises.
        """
        try:
            theirs = ModelSpec.of(arrays)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        self._form.spec.require(theirs, client=self.client)
        for name, array in flattened(arrays).items():
            self.write(name, array)

    def write(self, name: str, buffer: Any, start: int = 0) -> None:
        """Copy the next elements of tensor `name`, in its own (C) order; `start` is the index of the first of them.

        They come in an array of any kind (see `flcore.aggregate`): a flat one, or one of the tensor's shape.

        Raises `TensorMismatch` for another dtype, an unknown name, or elements that are not the next ones, and what
        `adopt` raises.
        """
        if name not in self._form.places:
            raise self._mismatch("the model has no tensor of this name", name)
        index, span = self._form.places[name]
        try:
            array = as_array(buffer, name)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        if array.dtype != DTYPES[span.tensor.dtype] or (array.ndim > 1 and array.shape != span.tensor.shape):
            expected, got = (f"{each.dtype} of shape {each.shape}" for each in (span.tensor, array))
            raise self._mismatch(f"expected {expected}, got {got}", name)
        values = np.ascontiguousarray(array).reshape(-1)
        stop, written = start + values.size, self._written.get(name, 0)
        if start != written or stop > span.tensor.size:
            came = f"elements {start} to {stop} came; the next is {written}, the tensor has {span.tensor.size}"
            raise self._mismatch(came, name)
        self._copy(index, span.start + start, values)
        self._written[name] = written + values.size

    def require_whole(self) -> None:
        """Raise `TensorMismatch` unless every element is in."""
        if self._adopted == len(self._form.pieces):
            return
        for tensor in self._form.spec.tensors:
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
        """Go to disk with what is here, and give the room back: nothing comes, or there was no room to wait for.

        Chunks go one by one, and each stays where it is until it is on disk: others may add chunks, take them, or let
        all go meanwhile, and where the disk is full (`StagingError`) nothing is lost that was there.
        """
        if self._claim is None or self._claim.cancel():  # cancelled: `_settle` goes to disk
            return
        with self._lock:
            if self.is_in_memory:
                self._disk = self._on_disk()
            entry = self._entry
        if entry is not None:
            entry.room.cancel()  # the next chunk goes to disk
        while self._spill_one():
            pass

    def _spill_one(self) -> bool:
        """Bring one chunk from memory to disk; say whether there may be more."""
        with self._changing():
            if self._disk is None:
                return False
            chunk = next(iter(self._bodies.items()), None)
            if chunk is None:
                if self._is_sealed:
                    self._disk.seal()
                self._leave(self._held)
                self._release()
                return False
            self._disk.adopt(*chunk)
            self._let_go(chunk[0])
            return True

    def drain(self) -> None:
        """From now on chunks are taken one after the other, until none is left: the next update may come."""
        with self._changing():
            self._release()

    def read(self, piece: PieceRange) -> Part:
        """Return a range of a chunk as the kernels take it. Raises `StagingError` where it cannot be read back."""
        chunk, row = self._form.piece_at(piece.segment, piece.first), WIRE_DTYPES[piece.dtype]
        offset = piece.first - chunk.first
        first = row.elements_at(chunk.count) + offset * row.itemsize
        codes = self._bytes(chunk, first, first + piece.count * row.itemsize)
        elements = np.frombuffer(codes, storage_dtype(piece.dtype))
        if not row.block:
            return elements
        first = offset // row.block * 4
        scales = self._bytes(chunk, first, first + -(-piece.count // row.block) * 4)
        return Quantized(elements, np.frombuffer(scales, np.float32))

    def release(self, piece: PieceRange) -> None:
        """Let a chunk go that is not read any more, and the room that it takes in memory."""
        with self._changing():
            self._let_go(piece)

    def drop(self) -> None:
        """Let all elements go, and the room that they take. May be called again."""
        with self._changing():
            disk, self._disk, self._bodies = self._disk, None, {}
            self._is_open, self._is_dropped = False, True
            if disk is not None:
                disk.drop()
            self._leave(self._held)
            self._release()
            entry, self._entry = self._entry, None
        if self._claim is not None:
            self._claim.cancel()  # if it still waits for room
        if entry is not None and not entry.room.cancel():
            self._room.leave(entry.nbytes)

    def _settle(self, claim: "Future[bool]") -> None:
        """There is room in memory, or there will be none."""
        in_memory = not claim.cancelled() and claim.result()
        with self._changing():
            self._claimed = self._form.nbytes if in_memory else 0
            try:
                if not self._is_dropped:
                    self._disk = None if in_memory else self._on_disk()
                    self._is_open = True
            except StagingError as error:
                self._refusal = error
            if not self._is_open:
                self._release()
        self._begun.set_result(None)  # also where there is no place: the first chunk is told why

    def _on_disk(self) -> OnDisk:
        return OnDisk(self._staging, self._form, self.client, self.weight)

    def _take_entry(self) -> None:
        """Take the room that the next chunk has, or give it back where the chunk goes to disk meanwhile."""
        entry, self._entry = self._entry, None
        if entry is not None and not entry.room.cancelled():
            self._held += entry.nbytes
            if not self.is_in_memory:
                self._leave(entry.nbytes)

    def _enter(self, nbytes: int) -> None:
        """Wait until a chunk may come into memory, if that is where chunks are."""
        if not self.is_in_memory:
            return
        self._room.enter(nbytes).result()
        with self._changing():
            self._held += nbytes
            if self.is_on_disk or self._is_dropped:  # meanwhile
                self._leave(nbytes)

    def _let_go(self, piece: PieceRange) -> None:
        if self._bodies.pop(piece, None) is not None:
            self._leave(body_bytes(piece.dtype, piece.count))

    def _leave(self, nbytes: int) -> None:
        self._held -= nbytes
        self._left += nbytes

    def _release(self) -> None:
        self._released, self._claimed = self._released + self._claimed, 0

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock, and give back afterwards what was let go: others that wait for it are called back then."""
        try:
            with self._lock:
                yield
        finally:
            with self._lock:
                left, self._left = self._left, 0
                released, self._released = self._released, 0
            if left:
                self._room.leave(left)
            if released:
                self._room.release(released)

    def _copy(self, index: int, first: int, values: npt.NDArray[Any]) -> None:
        segment = self._form.spec.segments[index]
        if self._form.dtypes[index] != segment.dtype:
            narrow = self._form.dtypes[index]
            raise self._mismatch(f"elements of {segment.dtype} travel as {narrow} here: expected whole pieces (adopt)")
        stored = values.view(storage_dtype(segment.dtype))
        itemsize, position = DTYPES[segment.dtype].itemsize, 0
        while position < stored.size:
            piece = self._form.piece_at(index, first + position)
            offset = first + position - piece.first
            part = stored[position : position + piece.count - offset]
            written = PieceRange(0, index, segment.dtype, first + position, part.size)
            self._limits.check(written, part, self._coefficient, self.client)
            self._write(piece, offset * itemsize, part.view(np.uint8).data)
            position += part.size

    def _write(self, piece: PieceRange, begin: int, data: Buffer) -> None:
        """Copy bytes into a chunk, from byte `begin` of it on; what is never written is zero."""
        nbytes = body_bytes(piece.dtype, piece.count)
        if piece not in self._bodies:
            self._enter(nbytes)
        with self._lock:
            self._require_open()
            if piece not in self._bodies and self._disk is not None:
                self._disk.write(piece, begin, data)
                return
            if piece not in self._bodies:
                self._bodies[piece] = np.zeros(nbytes, np.uint8).data
            memoryview(self._bodies[piece])[begin : begin + len(data)] = data

    def _bytes(self, chunk: PieceRange, begin: int, end: int) -> Buffer:
        """Return some bytes of a chunk: of one in memory without a copy."""
        with self._lock:
            self._require_open()
            if chunk in self._bodies or self._disk is None:
                return memoryview(self._bodies[chunk])[begin:end]
            disk = self._disk
        return disk.read(chunk, begin, end)

    def _require_open(self) -> None:
        if not self._is_open:
            raise self._refusal or StagingError("it was let go, or never begun", client=self.client)


def _check_gaps(segment: SegmentSpec, first: int, part: Part, client: str) -> None:
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
            tensor, _ = segment.at(first + begin)
            raise TensorMismatch("the gap behind it is not zero", client=client, tensor=tensor.name)
