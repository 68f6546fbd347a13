"""One client's update, staged: checked as it arrives, until it is committed as a whole or dropped."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Quantized, storage_dtype
from flcore_layout import DTYPES, SegmentRange
from flcore_transport import Buffer

from flcore.aggregation.combiner import Combiner
from flcore.aggregation.kept_staging import KeptStaging, KeptStore
from flcore.aggregation.staged_chunks import StagedChunks
from flcore.aggregation.staging import Staging
from flcore.errors import SpecError, TensorMismatch
from flcore.model.arrays import AnyArrays, as_array, flatten
from flcore.model.compression import KernelArray, view_body
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES
from flcore.model.spec import ModelSpec, SegmentSpec
from flcore.model.wire_format import WireFormat

MANY_GAPS = 32
"""From this many on, the gaps of a chunk are checked in one NumPy call."""


class StagedUpdate:
    """An update being received, in memory if the quota fits all of it, or else on disk.

    Each element is taken once, by one of two methods: `append` keeps whole chunks, in order; `write` copies elements of
    a named tensor. Both may be called once the future of `allocate` is done.
    """

    def __init__(
        self,
        wire_format: WireFormat,
        combiner: Combiner,
        staging: Staging | KeptStaging,
        client: str,
        weight: float,
        upload_key: str = "",
    ) -> None:
        self.client, self.announced_weight, self.weight = client, weight, weight
        self._wire_format, self._limits = wire_format, combiner.limits
        self._coefficient = combiner.coefficient(weight)
        self._chunks = StagedChunks(wire_format, staging, client, weight, upload_key)
        self._written: dict[str, int] = {}

    @property
    def appended(self) -> int:
        """How many pieces have been appended."""
        return self._chunks.appended

    @property
    def directory(self) -> str:
        """The name of the directory with its files; empty if it is in memory alone."""
        return self._chunks.directory

    def adopt(self, store: KeptStore) -> None:
        """Take over the files that an earlier process has left. The pieces in them were checked when they came."""
        self._chunks.adopt(store)

    @property
    def is_in_memory(self) -> bool:
        """Whether its chunks go into memory."""
        return self._chunks.is_in_memory

    @property
    def is_on_disk(self) -> bool:
        """Whether its chunks go into files."""
        return self._chunks.is_on_disk

    def allocate(self, *, may_wait: bool) -> "Future[None]":
        """Reserve memory, queueing for it with `may_wait`, or else create a directory on disk. Idempotent."""
        return self._chunks.allocate(may_wait=may_wait)

    def acquire_next(self) -> "Future[None]":
        """Request memory for the next chunk. The future is done once it may arrive. Idempotent; never blocks."""
        return self._chunks.acquire_next()

    def append(self, chunk: SegmentRange, body: Buffer) -> None:
        """Append the next chunk, as it is on the wire. Keeps the buffer without a copy. Waits for `acquire_next`.

        Raises:
            TensorMismatch: The chunk is not the next one, or a gap between its tensors is not zero.
            NonFinite: An element is not finite. This error and the next one name the tensor.
            OutOfBounds: An element is too large.
            StagingError: The disk cannot keep it.
        """
        position, chunks = self._chunks.appended, self._wire_format.pieces
        if position == len(chunks) or chunk != chunks[position]:
            raise self._mismatch(f"{chunk} came, expected piece {position} of the model")
        array = view_body(chunk.dtype, chunk.count, body)
        self._limits.check_range(chunk, array, self._coefficient, self.client)
        _check_gaps(self._wire_format.spec.segments[chunk.segment], chunk.first, array, self.client)
        self._chunks.append(chunk, body)

    def write_all(self, arrays: AnyArrays) -> None:
        """Copy a whole model.

        Args:
            arrays: Named arrays of any kind, nested or not (see `flcore.aggregate`).

        Raises:
            TensorMismatch: The names, shapes or dtypes are not the model's.
            NonFinite: An element is not finite. This error and the next one name the tensor.
            OutOfBounds: An element is too large.
            StagingError: The disk cannot keep it.
        """
        try:
            spec = ModelSpec.of(arrays)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        self._wire_format.spec.require_match(spec, client=self.client)
        for name, array in flatten(arrays).items():
            self.write(name, array)

    def write(self, name: str, buffer: Any, start: int = 0) -> None:
        """Copy the next elements of a tensor, in C order.

        Args:
            name: The tensor's name.
            buffer: An array of any kind (see `flcore.aggregate`), flat or of the tensor's shape.
            start: The index of its first element in the flat tensor. Default: 0.

        Raises:
            TensorMismatch: The name is unknown, the dtype is another one, or the elements are not the next ones.
            NonFinite: An element is not finite.
            OutOfBounds: An element is too large.
            StagingError: The disk cannot keep them.
        """
        if name not in self._wire_format.tensor_spans:
            raise self._mismatch("the model has no tensor of this name", name)
        index, span = self._wire_format.tensor_spans[name]
        try:
            array = as_array(buffer, name)
        except SpecError as error:
            raise self._mismatch(str(error)) from None
        if array.dtype != NUMPY_DTYPES[span.tensor.dtype] or (array.ndim > 1 and array.shape != span.tensor.shape):
            expected, got = (f"{tensor.dtype} of shape {tensor.shape}" for tensor in (span.tensor, array))
            raise self._mismatch(f"expected {expected}, got {got}", name)
        values = np.ascontiguousarray(array).reshape(-1)
        stop, written = start + values.size, self._written.get(name, 0)
        if start != written or stop > span.tensor.size:
            came = f"elements {start} to {stop} came; the next is {written}, the tensor has {span.tensor.size}"
            raise self._mismatch(came, name)
        self._write_elements(index, span.start + start, values)
        self._written[name] = written + values.size

    def require_complete(self) -> None:
        """Raise `TensorMismatch` unless every element has been taken."""
        if self._chunks.appended == len(self._wire_format.pieces):
            return
        for tensor in self._wire_format.spec.tensors:
            written = self._written.get(tensor.name, 0)
            if written != tensor.size:
                raise self._mismatch(f"only {written} of {tensor.size} elements came", tensor.name)

    def seal(self) -> None:
        """Record that all elements are there. From now on, an update on disk can be opened (`flcore.open_update`).

        Raises `StagingError` if the update is to be kept (`KeptStaging`) and the disk does not. Idempotent.
        """
        self._chunks.seal()

    def release_files(self) -> None:
        """Let `discard` remove files that would be kept: the update has no receipt."""
        self._chunks.release_files()

    def spill(self) -> None:
        """Move the chunks to disk and release their memory: the update is idle, or no memory is granted."""
        self._chunks.spill()

    def release_reservation(self) -> None:
        """Release the reservation: chunks are folded and freed one by one from now on, so the next update may come."""
        self._chunks.release_reservation()

    def read_range(self, range_: SegmentRange) -> KernelArray:
        """Return a range of a chunk as the kernels take it. Raises `StagingError` if it cannot be read back."""
        chunk, row = self._wire_format.piece_at(range_.segment, range_.first), DTYPES[range_.dtype]
        offset = range_.first - chunk.first
        # A chunk's body is its scales (for quantized codes: 4 bytes a block), and then its elements.
        first = row.elements_at(chunk.count) + offset * row.itemsize
        codes = self._chunks.read_bytes(chunk, first, first + range_.count * row.itemsize)
        elements = np.frombuffer(codes, storage_dtype(range_.dtype))
        if not row.block:
            return elements
        first = offset // row.block * 4
        scales = self._chunks.read_bytes(chunk, first, first + -(-range_.count // row.block) * 4)
        return Quantized(elements, np.frombuffer(scales, np.float32))

    def discard_chunk(self, chunk: SegmentRange) -> None:
        """Free a chunk in memory that will not be read again."""
        self._chunks.discard_chunk(chunk)

    def discard(self) -> None:
        """Free all chunks, in memory and on disk. Idempotent."""
        self._chunks.discard()

    def _mismatch(self, why: str, tensor: str = "") -> TensorMismatch:
        return TensorMismatch(why, client=self.client, tensor=tensor)

    def _write_elements(self, index: int, first: int, values: npt.NDArray[Any]) -> None:
        """Copy elements of a segment, from `first` on, into its chunks."""
        segment, wire_dtype = self._wire_format.spec.segments[index], self._wire_format.dtypes[index]
        if wire_dtype != segment.dtype:
            raise self._mismatch(
                f"elements of {segment.dtype} travel as {wire_dtype} here: expected whole pieces (append)"
            )
        stored = values.view(storage_dtype(segment.dtype))
        itemsize, position = NUMPY_DTYPES[segment.dtype].itemsize, 0
        while position < stored.size:
            chunk = self._wire_format.piece_at(index, first + position)
            offset = first + position - chunk.first
            part = stored[position : position + chunk.count - offset]
            written = SegmentRange(index, segment.dtype, first + position, part.size)
            self._limits.check_range(written, part, self._coefficient, self.client)
            self._chunks.write_bytes(chunk, offset * itemsize, part.view(np.uint8).data)
            position += part.size


def _check_gaps(segment: SegmentSpec, first: int, array: KernelArray, client: str) -> None:
    """Raise `TensorMismatch` unless the gaps between a segment's tensors are zero, in elements from `first` on.

    Gaps are summed and written like elements, so a value there would travel to all clients unseen.
    """
    values = array.codes if isinstance(array, Quantized) else array
    bounds = segment.gaps(first, first + values.size) - first
    if len(bounds) > MANY_GAPS:
        bits = values.view(f"u{values.itemsize}")
        # `reduceat` takes indices below the size: a last gap up to the end of the chunk needs no end.
        padded = bounds if bounds[-1] < bits.size else bounds[:-1]
        if not np.bitwise_or.reduceat(bits, padded)[::2].any():
            return
    for begin, end in bounds.reshape(-1, 2).tolist():
        if values[begin:end].any():
            tensor, _ = segment.locate(first + begin)
            raise TensorMismatch("the gap behind it is not zero", client=client, tensor=tensor.name)
