"""Values over the flat space: as payloads from flat models and from arrays that stay where they are, and in files."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flcore_transport import Inbox, Outbox

from flcore import Arrays, Model, ModelSpec, SpecError, load, save
from flcore.model.model import NamedArrays

ARRAYS: Arrays = {
    "big": np.random.default_rng(0).standard_normal((700, 1001)).astype(np.float32),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 5), np.float32),
    "half": np.linspace(-1, 1, 300).astype(np.float16),
    "brain": np.linspace(-1, 1, 257).astype(ml_dtypes.bfloat16),
    "counter": np.array([2**53, -(2**53)], np.int64),
    "double": np.array([[1e300]], np.float64),
    "byte": np.arange(256, dtype=np.uint8),
    "small": np.array([1.5], np.float32),
}


def same(found: Arrays, expected: Arrays) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == expected[name].dtype and np.array_equal(found[name], expected[name]) for name in expected
    )


def test_a_model_holds_what_it_was_made_of_and_hands_out_read_only_views() -> None:
    model = Model.of(ARRAYS)
    views = model.arrays()
    assert same(views, ARRAYS)
    assert views["scalar"].shape == () and views["empty"].shape == (0, 5)
    with pytest.raises(ValueError, match="read-only"):
        views["big"][0, 0] = 1
    assert np.shares_memory(views["big"], model.segments[0])


@pytest.mark.parametrize("flat", [True, False])
def test_a_payload_arrives_as_it_was_sent(flat: bool) -> None:
    spec = ModelSpec.of(ARRAYS)
    outbox = Outbox(Model.of(ARRAYS) if flat else NamedArrays(spec, ARRAYS))
    received = Model(spec)
    inbox = Inbox(received.layout, received)
    for index in range(len(outbox.plan)):
        inbox.accept(outbox.piece(index))
    inbox.finish()
    assert same(received.arrays(), ARRAYS)


def test_both_sources_make_the_same_pieces() -> None:
    spec = ModelSpec.of(ARRAYS)
    flat, named = Outbox(Model.of(ARRAYS)), Outbox(NamedArrays(spec, ARRAYS))
    assert len(flat.plan) == 7
    for index in range(len(flat.plan)):
        assert flat.piece(index) == named.piece(index)


def test_arrays_are_sent_from_their_own_memory_strided_ones_too() -> None:
    strided = np.arange(20, dtype=np.float32).reshape(4, 5).T
    arrays = {"w": strided, "v": np.arange(3, dtype=np.float32)}
    source = NamedArrays(ModelSpec.of(arrays), arrays)
    piece = Outbox(source).plan[0]
    data = b"".join(bytes(buffer) for buffer in source.read(piece))
    values = np.frombuffer(data, np.float32)
    assert values[:20].tolist() == strided.reshape(-1).tolist()
    assert not values[20:256].any() and values[256:259].tolist() == [0, 1, 2] and not values[259:].any()
    buffers = [np.frombuffer(buffer, np.uint8) for buffer in source.read(piece)]
    assert any(np.shares_memory(buffer, arrays["v"]) for buffer in buffers)


def test_models_go_to_files_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    save(Model.of(ARRAYS).arrays(), path, {"format": "pt"})
    loaded = load(path)
    assert {name: array.dtype for name, array in loaded.items()} == {name: a.dtype for name, a in ARRAYS.items()}
    assert all(np.array_equal(loaded[name], ARRAYS[name]) for name in ARRAYS)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save({"w": np.ones(3)}, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("flcore.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save({"w": np.zeros(3)}, path)
    assert load(path)["w"].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a model")
    with pytest.raises(SpecError, match=r"x\.safetensors"):
        load(tmp_path / "x.safetensors")
    safetensors.numpy.save_file({"flag": np.array([True])}, tmp_path / "bool.safetensors")
    with pytest.raises(SpecError, match="tensor 'flag'"):
        load(tmp_path / "bool.safetensors")
