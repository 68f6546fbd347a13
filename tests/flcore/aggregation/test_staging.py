"""Staging: memory first in, first out, disk beyond it, Arrow streams there, and nothing left behind."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from flcore_kernels import backend
from flcore_layout import SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import piece_elements

from flcore import Model, ModelSpec, StagingError
from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.staged_chunks import StagedChunks
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import DiskStore, Staging
from flcore.model.compression import Compressor
from flcore.model.wire_format import WireFormat
from flcore.rules.named import resolve_rule

SIZE = 2 * piece_elements("float32") + 1000
ARRAYS = {
    "w": np.arange(SIZE, dtype=np.float32),
    "b": np.arange(21).reshape(3, 7).astype(ml_dtypes.bfloat16),
    "none": np.zeros((4, 0), np.float16),
}
SPEC = ModelSpec.of(ARRAYS)
WIRE_FORMAT = WireFormat.uncompressed(SPEC)


def update(staging: Staging, client: str = "a") -> StagedUpdate:
    return StagedUpdate(
        WIRE_FORMAT, Combiner(SPEC, AggregationSettings(resolve_rule("mean"), "exact", backend())), staging, client, 1.0
    )


def fill(staged: StagedUpdate, pieces: slice = slice(None)) -> None:
    model = Model.of(ARRAYS)
    for index in range(len(WIRE_FORMAT.pieces))[pieces]:
        piece = WIRE_FORMAT.pieces[index]
        staged.append(piece, model.read(piece)[0])


def content(staged: StagedUpdate) -> list[bytes]:
    return [np.asarray(staged.read_range(piece)).tobytes() for piece in WIRE_FORMAT.pieces]


EXPECTED = [bytes(Model.of(ARRAYS).read(piece)[0]) for piece in WIRE_FORMAT.pieces]


@pytest.mark.parametrize("memory_bytes", [None, WIRE_FORMAT.nbytes, WIRE_FORMAT.nbytes - 1, 0])
def test_an_update_comes_back_as_it_went_in_from_memory_and_from_disk(memory_bytes: int | None) -> None:
    staging = Staging(memory_bytes)
    staged = update(staging)
    staged.allocate(may_wait=False).result(0)
    assert staged.is_on_disk is (memory_bytes not in (None, WIRE_FORMAT.nbytes))
    fill(staged)
    staged.require_complete()
    assert content(staged) == EXPECTED


def test_tensors_written_in_slices_end_up_on_disk_alike() -> None:
    staged = update(Staging(0))
    staged.allocate(may_wait=False).result(0)
    for name, array in ARRAYS.items():
        flat = array.reshape(-1)
        for start in range(0, flat.size, 77_777):
            staged.write(name, flat[start : start + 77_777], start)
    staged.require_complete()
    assert content(staged) == EXPECTED


@pytest.mark.parametrize("moment", [0, 1, 2, 4])
def test_a_spilled_update_writes_its_chunks_to_disk_and_releases_its_memory(moment: int) -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    staged = update(staging)
    staged.allocate(may_wait=False).result(0)
    fill(staged, slice(0, moment))
    assert staged.is_in_memory
    staged.spill()
    staged.spill()
    assert staged.is_on_disk
    assert staging.quota.reserve(WIRE_FORMAT.nbytes, may_wait=False).result(0) is True
    fill(staged, slice(moment, None))
    assert content(staged) == EXPECTED


def test_an_update_that_waits_in_vain_goes_to_disk() -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    update(staging).allocate(may_wait=True).result(0)
    waiting = update(staging, "b")
    begun = waiting.allocate(may_wait=True)
    assert not begun.done()
    waiting.spill()
    begun.result(0)
    fill(waiting)
    assert waiting.is_on_disk and content(waiting) == EXPECTED


def test_a_staged_segment_is_an_arrow_stream_also_when_it_is_torn(tmp_path: Path) -> None:
    directory = tmp_path / "staging"
    staged = update(Staging(0, directory))
    staged.allocate(may_wait=False).result(0)
    fill(staged, slice(0, 2))
    file = directory / "1" / "segment-0.arrows"
    torn = pa.ipc.open_stream(file.read_bytes()).read_all()
    assert torn.num_rows == 2 * piece_elements("float32")
    fill(staged, slice(2, None))
    whole = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    assert np.array_equal(whole["value"].to_numpy()[:SIZE], ARRAYS["w"])
    bits = pa.ipc.open_stream((directory / "1" / "segment-1.arrows").read_bytes()).read_all()
    assert bits.schema.field("value").metadata == {b"flcore.dtype": b"bfloat16"}
    assert np.array_equal(bits["value"].to_numpy()[:21].view(ml_dtypes.bfloat16), ARRAYS["b"].reshape(-1))


def test_nothing_stays_on_disk(tmp_path: Path) -> None:
    directory = tmp_path / "staging"
    staging = Staging(0, directory)
    first, second = update(staging), update(staging, "b")
    for staged in (first, second):
        staged.allocate(may_wait=False).result(0)
        fill(staged)
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
    first.discard()
    first.discard()
    assert sorted(path.name for path in directory.iterdir()) == ["2"]
    del staging, staged, first, second
    assert not directory.exists()


@pytest.mark.parametrize("memory_bytes", [WIRE_FORMAT.nbytes, 0])
def test_a_discarded_update_takes_nothing_more(memory_bytes: int) -> None:
    staging = Staging(memory_bytes)
    staged = update(staging)
    staged.allocate(may_wait=False).result(0)
    staged.discard()
    with pytest.raises(StagingError, match="client 'a': it was discarded"):
        fill(staged)
    staged.spill()
    assert not staged.is_on_disk
    assert staging.quota.reserve(memory_bytes, may_wait=False).result(0) is True


def test_an_update_discarded_while_it_waits_takes_no_memory() -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    first, second = update(staging), update(staging, "b")
    first.allocate(may_wait=True).result(0)
    begun = second.allocate(may_wait=True)
    second.discard()
    begun.result(0)
    with pytest.raises(StagingError, match="discarded"):
        fill(second)
    first.discard()
    assert staging.quota.reserve(WIRE_FORMAT.nbytes, may_wait=False).result(0) is True


def test_a_disk_that_is_full_refuses_the_update_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    def short(_file: int, buffers: list[Any], _offset: int) -> int:
        return sum(len(buffer) for buffer in buffers) - 1

    writes: list[tuple[Callable[..., int], str]] = [(full, "No space left"), (short, "the disk is full")]
    for write, message in writes:
        staged = update(Staging(0))
        staged.allocate(may_wait=False).result(0)
        monkeypatch.setattr(os, "pwritev", write)
        with pytest.raises(StagingError, match=f"client 'a': the disk does not keep it: .*{message}"):
            fill(staged)
        monkeypatch.undo()
        spilled = update(staging := Staging(WIRE_FORMAT.nbytes))
        spilled.allocate(may_wait=False).result(0)
        fill(spilled)
        monkeypatch.setattr(os, "pwritev", write)
        with pytest.raises(StagingError, match=message):
            spilled.spill()
        monkeypatch.undo()
        assert content(spilled) == EXPECTED, "what was there is there"
        spilled.discard()
        assert staging.quota.reserve(WIRE_FORMAT.nbytes, may_wait=False).result(0) is True, (
            "and its memory is free when it goes"
        )


def test_chunks_come_and_go_while_an_update_goes_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = update(staging := Staging(WIRE_FORMAT.nbytes))
    staged.allocate(may_wait=False).result(0)
    fill(staged, slice(2))
    taken: list[bytes] = []
    append = DiskStore.append

    def between(kept: DiskStore, piece: SegmentRange, body: Buffer) -> None:
        append(kept, piece, body)
        if not taken:  # the first chunk is on its way, the second still in memory
            taken.append(np.asarray(staged.read_range(WIRE_FORMAT.pieces[1])).tobytes())
            fill(staged, slice(2, None))

    monkeypatch.setattr(DiskStore, "append", between)
    staged.spill()
    assert staged.is_on_disk
    found = [
        np.asarray(staged.read_range(piece)).tobytes() for index, piece in enumerate(WIRE_FORMAT.pieces) if index != 1
    ]
    assert [found[0], taken[0], *found[1:]] == EXPECTED
    assert staging.quota.reserve(WIRE_FORMAT.nbytes, may_wait=False).result(0) is True


def test_an_update_that_goes_to_disk_in_the_middle_of_a_read_is_read_on_there(monkeypatch: pytest.MonkeyPatch) -> None:
    wire_format = WireFormat.compressed(SPEC, "int8[256]")
    settings = AggregationSettings(resolve_rule("mean"), "exact", backend())
    staged = StagedUpdate(wire_format, Combiner(SPEC, settings), Staging(), "a", 1.0)
    staged.allocate(may_wait=False).result(0)
    sent = Compressor(wire_format, Model.of(ARRAYS))
    for piece in wire_format.pieces:
        staged.append(piece, b"".join(sent.read(piece)))
    expected, read = staged.read_range(wire_format.pieces[0]), StagedChunks.read_bytes

    def spilling(chunks: StagedChunks, *place: Any) -> Buffer:
        found = read(chunks, *place)
        chunks.spill()  # codes were in memory, scales are on disk
        return found

    monkeypatch.setattr(StagedChunks, "read_bytes", spilling)
    found = staged.read_range(wire_format.pieces[0])
    assert staged.is_on_disk
    assert all(np.array_equal(there, here) for there, here in zip(found, expected, strict=True))


def test_who_stops_waiting_for_an_update_to_begin_does_not_stop_the_next() -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    first, second = update(staging), update(staging, "b")
    first.allocate(may_wait=True).result(0)
    assert not second.allocate(may_wait=True).cancel()
    first.discard()
    second.allocate(may_wait=True).result(0)
    fill(second)
    assert content(second) == EXPECTED


def test_a_directory_that_cannot_be_made_refuses_the_update_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    staged = update(Staging(0, tmp_path / "file" / "staging"))
    staged.allocate(may_wait=False).result(0)
    with pytest.raises(StagingError, match=r"client 'a': the disk does not keep it: .*Not a directory"):
        fill(staged)


def test_a_file_that_was_cut_is_noticed(tmp_path: Path) -> None:
    staged = update(Staging(0, tmp_path / "staging"))
    staged.allocate(may_wait=False).result(0)
    fill(staged)
    os.truncate(tmp_path / "staging" / "1" / "segment-0.arrows", 4_000_000)
    with pytest.raises(StagingError, match="the file was cut"):
        content(staged)


def test_the_next_chunk_is_waited_for_by_a_future_and_by_no_thread() -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    going, coming = update(staging, "going"), update(staging, "coming")
    going.allocate(may_wait=True).result(0)
    fill(going)
    going.release_reservation()  # its chunks are freed from now on
    coming.allocate(may_wait=True).result(0)
    ready = coming.acquire_next()
    assert not ready.done() and coming.acquire_next() is ready
    going.discard_chunk(WIRE_FORMAT.pieces[0])
    assert ready.result(0) is None
    fill(coming, slice(0, 1))
    assert not coming.acquire_next().done()
    coming.spill()
    assert coming.acquire_next().done(), "chunks on disk need no memory"
    fill(coming, slice(1, None))
    assert content(coming) == EXPECTED
    going.discard()
    assert staging.quota.acquire_chunk(WIRE_FORMAT.nbytes).result(0), "all memory was released"


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_discarded_update_releases_the_memory_of_its_next_chunk(is_granted: bool) -> None:
    staging = Staging(WIRE_FORMAT.nbytes)
    staged, other = update(staging), staging.quota.acquire_chunk(WIRE_FORMAT.nbytes)
    staged.allocate(may_wait=True).result(0)
    if is_granted:
        staging.quota.release_chunks(WIRE_FORMAT.nbytes)
    ready = staged.acquire_next()
    assert other.done() and ready.done() is is_granted
    staged.discard()
    assert ready.done()
    if not is_granted:
        staging.quota.release_chunks(WIRE_FORMAT.nbytes)
    assert staging.quota.acquire_chunk(WIRE_FORMAT.nbytes).result(0)
