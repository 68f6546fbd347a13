"""Models in files: read in ranges, written beside and switched to, published without a copy."""

import errno
import gc
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flcore_transport import Outbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flcore import Arrays, Model, ModelSpec, ModelWriter, SpecError, StoredModel, TensorSpec, open_model, save
from flcore.model.atomic_replace import AtomicReplace, publish
from flcore.model.chunks import copy_chunks
from tests.flcore.model.test_model import ARRAYS, same
from tests.flcore.model.test_spec import TENSORS

ONES: Arrays = {"a": np.ones(1000, np.float32), "b": np.ones(1000, np.float32), "c": np.ones(10)}
TWOS: Arrays = {name: array * 2 for name, array in ONES.items()}


def random_model(spec: ModelSpec) -> Model:
    """A model of random bits: NaNs, infinities and all."""
    model = Model(spec)
    rng = np.random.default_rng(0)
    for view in model.arrays().values():
        view.flags.writeable = True
        view.reshape(-1).view(np.uint8)[:] = rng.integers(0, 256, view.nbytes, np.uint8)
    return model


def written(arrays: Arrays, directory: Path, shard_bytes: int = 10**9, name: str = "model") -> StoredModel:
    model = Model.of(arrays)
    with ModelWriter(model.spec, directory, name, shard_bytes=shard_bytes) as writer:
        copy_chunks(model, writer)
        return writer.commit()


def as_hugging_face_reads(directory: Path) -> Arrays:
    """Read a directory as the usual loaders do, the single file before the index; the names come sorted."""
    if (directory / "model.safetensors").exists():
        return dict(sorted(safetensors.numpy.load_file(directory / "model.safetensors").items()))
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    arrays: dict[str, np.ndarray] = {}
    for file in set(weight_map.values()):
        loaded = safetensors.numpy.load_file(directory / file)
        assert {weight_map[name] for name in loaded} == {file}
        arrays |= loaded
    assert arrays.keys() == weight_map.keys()
    return dict(sorted(arrays.items()))


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@given(TENSORS, st.sampled_from([100, 1000, 10**9]), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_chunks_are_those_of_the_model_in_memory(
    tmp_path: Path, tensors: tuple[TensorSpec, ...], shard_bytes: int, draw: random.Random
) -> None:
    model = random_model(ModelSpec(tensors))
    with ModelWriter(model.spec, tmp_path, shard_bytes=shard_bytes) as writer:
        ranges = []
        for index, segment in enumerate(model.spec.segments):
            cuts = sorted({0, segment.elements, *(draw.randint(0, segment.elements) for _ in range(3))})
            ranges += [(index, first, stop) for first, stop in pairwise(cuts)]
        draw.shuffle(ranges)
        for index, first, stop in ranges:
            writer.put(index, first, model.chunk(index, first, stop))
        committed = writer.commit()
    for stored in (committed, open_model(tmp_path)):
        assert stored.spec == model.spec and stored.layout == model.layout
        for index, segment in enumerate(model.spec.segments):
            first, stop = sorted(draw.randint(0, segment.elements) for _ in range(2))
            for chunk in (stored.chunk(index, first, stop), stored.chunk(index, 0, segment.elements)[first:stop]):
                assert chunk.dtype == model.segments[index].dtype
                assert chunk.tobytes() == model.chunk(index, first, stop).tobytes()
        mapped = stored.arrays()
        assert list(mapped) == list(model.arrays())
        assert all(mapped[name].tobytes() == array.tobytes() for name, array in model.arrays().items())
        assert all(stored.tensor(name).tobytes() == array.tobytes() for name, array in model.arrays().items())


@pytest.mark.parametrize("shard_bytes", [10**9, 2000, 1])
def test_the_usual_loaders_read_what_is_written(tmp_path: Path, shard_bytes: int) -> None:
    stored = written(ARRAYS, tmp_path, shard_bytes)
    found = as_hugging_face_reads(tmp_path)
    assert same({name: found[name] for name in ARRAYS}, ARRAYS)
    assert same(stored.arrays(), ARRAYS)
    files = [name for name in names(tmp_path) if name.endswith(".safetensors")]
    assert files == [path.name for path in stored.files]
    if shard_bytes > 10**6:
        assert names(tmp_path) == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in ARRAYS.values())
        assert files[0][14:] == f"-00001-of-{len(files):05d}.safetensors"


def test_what_others_write_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(dict(ARRAYS), tmp_path / "model.safetensors", {"format": "pt"})
    stored = open_model(tmp_path)
    found = stored.arrays()
    assert same({name: found[name] for name in ARRAYS}, ARRAYS)
    assert stored.shards.metadata == {"format": "pt"}


def test_a_stored_model_is_sent_as_the_model_in_memory_is(tmp_path: Path) -> None:
    flat, stored = Outbox(Model.of(ARRAYS)), Outbox(written(ARRAYS, tmp_path))
    assert [stored.piece(index) for index in range(len(flat.piece_ranges))] == [
        flat.piece(i) for i in range(len(flat.piece_ranges))
    ]


def test_thousands_of_tiny_tensors_are_read_with_few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(ModelSpec(tuple(TensorSpec(f"t{i}", "float16", (i % 5,)) for i in range(5000))))
    with ModelWriter(model.spec, tmp_path) as writer:
        copy_chunks(model, writer)
        stored = writer.commit()
    calls, preadv = [], os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    assert stored.chunk(0, 0, model.spec.segments[0].elements).tobytes() == model.segments[0].tobytes()
    assert len(calls) <= 8


def test_bytes_that_come_in_parts_are_all_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(buffers: list[memoryview]) -> list[memoryview]:
        return [*buffers[:1], *(buffer[:77] for buffer in buffers[1:2])] if len(buffers) > 1 else [buffers[0][:777]]

    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, few(buffers), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwritev(fd, few(buffers), offset))
    arrays = {**{f"t{i}": np.arange(i, dtype=np.int16) for i in range(30)}, "big": np.arange(5000, dtype=np.int16)}
    assert same(Model.of(arrays).arrays(), written(arrays, tmp_path).arrays())
    assert written(arrays, tmp_path).chunk(0, 0, 10_000).tobytes() == Model.of(arrays).chunk(0, 0, 10_000).tobytes()


def test_ranges_are_put_and_read_from_many_threads(tmp_path: Path) -> None:
    model = random_model(ModelSpec((TensorSpec("w", "float32", (300, 1000)), TensorSpec("v", "float32", (77_777,)))))
    starts = range(0, model.spec.segments[0].elements, 1000)
    stops = [min(first + 1000, model.spec.segments[0].elements) for first in starts]
    with ModelWriter(model.spec, tmp_path, shard_bytes=1) as writer, ThreadPoolExecutor(8) as pool:

        def put(first: int, stop: int) -> None:
            chunk = writer.chunk(0, first, stop)
            chunk[:] = model.chunk(0, first, stop)
            writer.put(0, first, chunk)

        list(pool.map(put, starts, stops))
        stored = writer.commit()
        chunks = pool.map(lambda first, stop: stored.chunk(0, first, stop), starts, stops)
        assert np.concatenate(list(chunks)).tobytes() == model.segments[0].tobytes()


def test_a_model_that_was_not_put_whole_is_not_committed(tmp_path: Path) -> None:
    spec = ModelSpec((TensorSpec("a", "int8", (256,)), TensorSpec("b", "int8", (256,)), TensorSpec("e", "int64", (0,))))
    with ModelWriter(spec, tmp_path) as writer:
        with pytest.raises(SpecError, match="'a' is incomplete: int8 element 0"):
            writer.commit()
        writer.put(0, 0, np.ones(300, np.int8))
        writer.put(0, 400, np.ones(112, np.int8))
        with pytest.raises(SpecError, match="'b' is incomplete: int8 element 300"):
            writer.commit()
        for first, values in [(500, np.zeros(20, np.int8)), (-1, np.zeros(5, np.int8)), (0, np.zeros(5, np.uint8))]:
            with pytest.raises(SpecError, match=r"a range of|a flat, contiguous"):
                writer.put(0, first, values)
        writer.put(0, 290, np.ones(120, np.int8))
        writer.commit()
        for call in (writer.commit, lambda: writer.put(0, 0, np.ones(3, np.int8))):
            with pytest.raises(ValueError, match="committed or aborted"):
                call()
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="expected a model's name, a file name without suffix"):
        ModelWriter(ModelSpec.of(ONES), tmp_path, name)


def test_a_writer_that_fails_leaves_the_old_model_and_nothing_else(tmp_path: Path) -> None:
    written(ONES, tmp_path)
    with (
        pytest.raises(RuntimeError, match="enough"),
        ModelWriter(ModelSpec.of(ONES), tmp_path, shard_bytes=1) as writer,
    ):
        writer.put(0, 0, np.zeros(256, np.float32))
        raise RuntimeError("enough")
    assert names(tmp_path) == ["model.safetensors"]
    assert same(open_model(tmp_path).arrays(), ONES)


class PowerCutError(BaseException):
    """Nobody cleans up after it."""


class Countdown:
    """Lets some calls pass, then fails one; after a power cut nothing else would follow, after an error it would."""

    def __init__(self, passes: int, failure: type[BaseException]) -> None:
        self.passes, self.failure = passes, failure

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            self.passes -= 1
            if self.passes == -1:
                raise self.failure("injected")
            return real(*args, **keywords)

        return call


@pytest.mark.parametrize("failure", [OSError, PowerCutError])
@pytest.mark.parametrize(("before", "after"), [(10**9, 10**9), (10**9, 5000), (5000, 10**9), (5000, 3000)])
def test_whichever_call_fails_there_is_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int, failure: type[BaseException]
) -> None:
    outcomes = []
    gc.freeze()  # what there was before is not looked through each time
    for passes in range(40):
        directory = tmp_path / str(passes)
        written(ONES, directory, before)
        there = names(directory)
        countdown = Countdown(passes, failure)
        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, countdown.around(getattr(owner, name)))
            if failure is PowerCutError:
                patch.setattr(AtomicReplace, "discard", lambda *_: None)
            with suppress(failure):
                written(TWOS, directory, after)
        found = as_hugging_face_reads(directory)
        assert same(found, ONES) or same(found, TWOS)
        with open_model(directory) as stored:
            assert same(stored.arrays(), found)
        if failure is OSError and found["a"][0] == 1:
            assert not [name for name in names(directory) if name.startswith(".")] and set(there) <= set(
                names(directory)
            )
        outcomes.append(found["a"][0])
        gc.collect()  # a process that has died holds no locks
        last = written(TWOS, directory, after)
        assert [name for name in names(directory) if "index" not in name] == [file.name for file in last.files]
        assert (directory / "model.safetensors.index.json").exists() == (len(last.files) > 1)
        if countdown.passes >= 0:
            break
    gc.unfreeze()
    assert outcomes == sorted(outcomes) and {1, 2} == set(outcomes) and len(outcomes) < 40


def test_what_is_being_written_is_not_swept_away(tmp_path: Path) -> None:
    model = Model.of(ONES)
    with ModelWriter(model.spec, tmp_path) as slow:
        written(TWOS, tmp_path)
        copy_chunks(model, slow)
        slow.commit()
    assert same(open_model(tmp_path).arrays(), ONES)


def test_nothing_but_the_old_model_is_removed(tmp_path: Path) -> None:
    others = [
        "best.safetensors",
        "model-0a1b2c3d.safetensors",
        "model-ema-00001-of-00002.safetensors",
        "model-v2-0a1b2c3d-00001-of-00002.safetensors",
        "model.bin",
        "model2.safetensors",
        ".model.0a1b2c3d.0.partial.txt",
        ".model2.0a1b2c3d.0.partial",
        "optimizer.safetensors",
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    theirs = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": others[0]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": theirs}))
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / ".model.0a1b2c3d.0.partial").write_bytes(b"of a writer that has died")
    sharded = written(ONES, tmp_path, 4000)
    assert names(tmp_path) == sorted([*others, "model.safetensors.index.json", *(file.name for file in sharded.files)])
    written(ONES, tmp_path)
    assert names(tmp_path) == sorted([*others, "model.safetensors"])


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_a_model_that_is_replaced_while_it_is_open_is_read_as_it_was(tmp_path: Path, shard_bytes: int) -> None:
    committed, opened = written(ONES, tmp_path, shard_bytes), open_model(tmp_path)
    mapped = opened.arrays()
    written(TWOS, tmp_path, shard_bytes)
    for old in (committed, opened):
        assert set(old.chunk(0, 0, 1000).tolist()) == {1}
    opened.close()
    assert same(mapped, ONES)
    assert same(open_model(tmp_path).arrays(), TWOS)
    with pytest.raises(ValueError, match="was closed"):
        opened.chunk(0, 0, 1)


def test_a_model_that_is_being_replaced_can_be_opened_at_any_time(tmp_path: Path) -> None:
    written(ONES, tmp_path, 4000)
    ending = threading.Event()

    def replace() -> None:
        for number in range(60):
            written((ONES, TWOS)[number % 2], tmp_path, (4000, 2000, 10**9)[number % 3]).close()
        ending.set()

    thread = threading.Thread(target=replace)
    thread.start()
    while not ending.is_set():
        with open_model(tmp_path) as stored:
            arrays = stored.arrays()
        assert len({float(array.reshape(-1)[0]) for array in arrays.values()}) == 1
    thread.join()


@pytest.mark.serial
def test_files_are_closed_when_nobody_reads_them_any_more(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(str(tmp_path) in str(entry.resolve()) for entry in Path("/proc/self/fd").iterdir())

    before = open_files()
    stored = written(ONES, tmp_path, 4000)
    reader = open_model(tmp_path)
    chunk = reader.chunk(0, 0, 5)
    assert open_files() == before + 6
    stored.close()
    assert open_files() == before + 3
    del reader, stored
    gc.collect()
    assert open_files() == before and chunk.tolist() == [1] * 5


def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    stored = written(ONES, tmp_path)
    os.truncate(stored.files[0], stored.shards.headers[0].file_bytes - 100)
    with pytest.raises(SpecError, match=r"model\.safetensors ends at byte .* was truncated"):
        stored.chunk(0, 0, 2048)


@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_a_published_model_is_the_same_bytes_on_the_disk(tmp_path: Path, shard_bytes: int) -> None:
    stored = written(ONES, tmp_path / "run", shard_bytes)
    publish(stored, tmp_path / "out/model.safetensors")
    published = open_model(tmp_path / "out")
    for _ in range(2):
        assert same(published.arrays(), ONES) and same(as_hugging_face_reads(tmp_path / "out"), ONES)
        assert published.spec == stored.spec
        assert all(ours.samefile(theirs) for ours, theirs in zip(stored.files, published.files, strict=True))
        publish(stored, tmp_path / "out/model.safetensors")
        published = open_model(tmp_path / "out")
    assert len(names(tmp_path / "out")) == len(stored.files) + (len(stored.files) > 1)
    publish(written(TWOS, tmp_path / "run", 10**9), tmp_path / "out/model.safetensors")
    assert names(tmp_path / "out") == names(tmp_path / "run") == ["model.safetensors"]
    assert same(published.arrays(), ONES) and same(open_model(tmp_path / "out").arrays(), TWOS)
    publish(open_model(tmp_path / "out"), tmp_path / "out/model.safetensors")
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_a_model_that_lost_its_name_is_copied(tmp_path: Path) -> None:
    stored = written(ONES, tmp_path / "run", 4000)
    for file in stored.files[1:]:
        file.unlink()
    stored.files[0].rename(tmp_path / "aside")
    stored.files[0].write_bytes(b"another")
    publish(stored, tmp_path / "best.safetensors")
    found = open_model(tmp_path / "best.safetensors")
    assert same(found.arrays(), ONES)
    assert [file.stat().st_nlink for file in found.files] == [1, 1, 1]


def test_across_file_systems_a_model_is_copied_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr("flcore.model.atomic_replace.COPIED_BYTES", 1000)
    publish(written(ONES, tmp_path / "run"), tmp_path / "best.safetensors")
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "run/model.safetensors").read_bytes()
    monkeypatch.setattr(Path, "replace", link)
    with pytest.raises(OSError, match="another file system"):
        publish(written(TWOS, tmp_path / "new"), tmp_path / "best.safetensors")
    assert names(tmp_path) == ["best.safetensors", "new", "run"]


def test_a_link_is_made_to_what_a_symbolic_link_leads_to(tmp_path: Path) -> None:
    blob = written(ONES, tmp_path / "blobs").files[0]
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model.safetensors").symlink_to(blob)
    publish(open_model(tmp_path / "snapshot"), tmp_path / "best.safetensors")
    assert (tmp_path / "best.safetensors").samefile(blob) and not (tmp_path / "best.safetensors").is_symlink()


MEMORY = """
import sys
import numpy as np
from flcore import ModelSpec, ModelWriter, TensorSpec, open_model, save
from flcore.model.chunks import copy_chunks
from flcore.model.atomic_replace import publish

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def work(directory, elements):
    spec = ModelSpec((TensorSpec("w", "float32", (elements,)), TensorSpec("v", "bfloat16", (elements, 2))))
    with ModelWriter(spec, directory) as writer:
        for index, segment in enumerate(spec.segments):
            for first in range(0, segment.elements, 1 << 19):
                chunk = writer.chunk(index, first, min(first + (1 << 19), segment.elements))
                chunk[:] = index + 1
                writer.put(index, first, chunk)
        stored = writer.commit()
    save(stored, directory + "/again.safetensors", shard_bytes=elements)
    publish(open_model(directory + "/again.safetensors"), directory + "/best.safetensors")
    with open_model(directory + "/best.safetensors") as best:
        assert best.arrays()["w"][5] == 1 and best.arrays()["v"].shape == (elements, 2)
        assert best.chunk(1, 0, 512).tolist() == [2] * 512

work(sys.argv[1], 1 << 10)
before = peak()
work(sys.argv[1], 1 << 25)
print(peak() - before)
"""


@pytest.mark.serial
def test_a_model_of_256_mb_goes_through_a_few_mb_of_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 256 << 20
    assert int(done.stdout) < 10 << 10, "KiB"


@pytest.mark.serial
def test_strided_arrays_are_saved_with_no_copy_of_a_tensor(tmp_path: Path) -> None:
    arrays = {"w": np.asfortranarray(np.arange(4_000_000, dtype=np.float32).reshape(2000, 2000))}
    tracemalloc.start()
    try:
        save(arrays, tmp_path / "model.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20  # a chunk of 2 MiB, and the slice that fills it
    finally:
        tracemalloc.stop()
    assert np.array_equal(open_model(tmp_path).arrays()["w"], arrays["w"])
