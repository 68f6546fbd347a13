"""Models to files and back, by path."""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flcore import Arrays, Job, JobError, Model, SpecError, load, open_model, save
from flcore.aggregation.storage import Storage
from tests.flcore.model.test_model import ARRAYS, same


@pytest.mark.parametrize("shard_bytes", [10**9, 1000])
def test_models_go_to_files_and_come_back(tmp_path: Path, shard_bytes: int) -> None:
    path = tmp_path / "deep" / "start.safetensors"
    save(ARRAYS, path, {"format": "pt"}, shard_bytes=shard_bytes)
    assert same(load(path), ARRAYS)
    assert path.exists() == (shard_bytes == 10**9) != (path.parent / "start.safetensors.index.json").exists()
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]
    again = tmp_path / "again.safetensors"
    for model in (Model.of(ARRAYS), open_model(path)):
        save(model, again)
        assert same(load(again), ARRAYS)
        with safetensors.safe_open(again, "numpy") as file:
            assert file.metadata() is None


def test_loaded_arrays_are_ones_own(tmp_path: Path) -> None:
    save(ARRAYS, tmp_path / "x.safetensors")
    loaded = load(tmp_path / "x.safetensors")
    loaded["big"][:] = 0
    assert loaded["big"].flags.owndata and same(load(tmp_path / "x.safetensors"), ARRAYS)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16),
        np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(16, -1)[::2, ::-3],
        np.float32(1.5),
        np.array(7, np.uint64),
        np.zeros((3, 0, 2), np.int16),
        np.broadcast_to(np.arange(3.0), (4, 3)),
        np.arange(2_000_000, dtype=np.int32),
    ],
    ids=["bfloat16", "float16 strided", "scalar", "0-d", "empty", "broadcast", "many chunks"],
)
def test_every_bit_comes_back_by_us_and_by_safetensors(tmp_path: Path, array: Any) -> None:
    save({"w": array}, tmp_path / "model.safetensors")
    for found in (load(tmp_path)["w"], safetensors.numpy.load_file(tmp_path / "model.safetensors")["w"]):
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


def test_a_path_stands_for_a_file_an_index_or_a_directory(tmp_path: Path) -> None:
    arrays: Arrays = {"b": np.ones(300), "a": np.zeros(3, np.int8)}
    save(arrays, tmp_path / "model.safetensors", shard_bytes=1)
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"):
        assert same(load(path), arrays) and same(load(str(path)), arrays)
        assert len(open_model(path).files) == 2
    save({"c": np.ones(1)}, tmp_path / "model.safetensors")
    assert list(load(tmp_path)) == ["c"]


def test_what_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(tmp_path)
    for name in ("x.safetensors", "x.safetensors.index.json", "x"):
        with pytest.raises(FileNotFoundError, match=name):
            load(tmp_path / name)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save({"w": np.ones(3)}, path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "pwritev", fail)
        save({"w": np.zeros(3)}, path)
    assert load(path)["w"].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_arrays_that_are_no_model_leave_no_trace(tmp_path: Path) -> None:
    for arrays in ({}, {"w": np.ones(1, complex)}, {"w": [1.0]}):
        with pytest.raises(SpecError):
            save(arrays, tmp_path / "deep/model.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a model")
    with pytest.raises(SpecError, match=r"x\.safetensors"):
        load(tmp_path / "x.safetensors")
    safetensors.numpy.save_file({"flag": np.ones(3, np.complex64)}, tmp_path / "complex.safetensors")
    with pytest.raises(SpecError, match=r"complex\.safetensors: tensor 'flag'"):
        load(tmp_path / "complex.safetensors")


def job_from(directory: Path, model: str) -> Job:
    """A job of one round that starts from a stored model."""
    toml = f"""
name = "stored"
clients = 1
server = {{ model = "{model}", rounds = 1 }}
client = {{ executor = "train.py" }}
tasks.train.returns = "weights"
"""
    (directory / "job.toml").write_text(toml)
    return Job.load(directory)


def test_a_job_starts_from_a_file_an_index_or_a_directory(tmp_path: Path) -> None:
    save(ARRAYS, tmp_path / "one/model.safetensors")
    save(ARRAYS, tmp_path / "many/model.safetensors", shard_bytes=1000)
    for model in ("one", "many", "one/model.safetensors", "many/model.safetensors.index.json", str(tmp_path / "one")):
        found = Storage().copy_model(job_from(tmp_path, model).initial_model())
        assert same(found.arrays(), ARRAYS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("start.safetensors", "there is no file .*start"),
        ("start", "there is no file .*start"),
        (".", "holds neither"),
        ("job.toml", "no safetensors file"),
    ],
)
def test_a_job_says_what_it_cannot_start_from(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(JobError, match=f"server.model: .*{message}"):
        job_from(tmp_path, model).initial_model()


def test_a_pipe_or_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(SpecError, match=r"pipe\.safetensors: expected a regular file, got a named pipe"):
        open_model(tmp_path / "pipe.safetensors")
    with pytest.raises(SpecError, match=r"holds neither"):
        open_model(tmp_path / "folder.safetensors")
