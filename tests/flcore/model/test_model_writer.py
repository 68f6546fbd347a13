"""Temporary models: files while somebody holds them, kept under another name without a copy."""

import gc
from pathlib import Path

import numpy as np
import pytest

from flcore import ModelSpec, StoredModel, load
from flcore.model.atomic_replace import publish
from flcore.model.model_writer import TemporaryModels

SPEC = ModelSpec.of({"w": np.zeros(1000, np.float32)})


def made(models: TemporaryModels, value: float) -> StoredModel:
    with models(SPEC) as target:
        chunk = target.chunk(0, 0, 1024)
        chunk[:] = 0
        chunk[:1000] = value
        target.put(0, 0, chunk)
        return target.commit()


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_a_models_files_go_with_it(tmp_path: Path) -> None:
    models = TemporaryModels(tmp_path / "models")
    first, second = made(models, 1.0), made(models, 2.0)
    assert files(tmp_path) == ["models/1/0.safetensors", "models/2/0.safetensors"]
    arrays = first.arrays()
    del first
    gc.collect()
    assert files(tmp_path) == ["models/2/0.safetensors"]
    assert set(arrays["w"].tolist()) == {1.0}, "what was handed out stays readable"
    assert second.chunk(0, 0, 3).tolist() == [2.0] * 3
    del second, models
    gc.collect()
    assert not (tmp_path / "models").exists()


def test_a_published_model_stays_and_takes_no_second_copy(tmp_path: Path) -> None:
    models = TemporaryModels(tmp_path / "models")
    model = made(models, 3.0)
    publish(model, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_ino == model.files[0].stat().st_ino
    del model, models
    gc.collect()
    assert files(tmp_path) == ["model.safetensors"]
    assert set(load(tmp_path / "model.safetensors")["w"].tolist()) == {3.0}


def test_what_is_given_up_or_was_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / "models" / "7").mkdir(parents=True)
    models = TemporaryModels(tmp_path / "models")
    with pytest.raises(ZeroDivisionError), models(SPEC):
        raise ZeroDivisionError
    assert not files(tmp_path) and not list((tmp_path / "models").iterdir())
