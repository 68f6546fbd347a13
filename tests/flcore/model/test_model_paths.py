"""What a path means to which a model is written."""

from pathlib import Path

import numpy as np
import pytest

from flcore import SpecError, load, save
from flcore.model.model_paths import require_directory, split_model_path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("x.safetensors", ("", "x")),
        ("runs/v1.0.safetensors", ("runs", "v1.0")),
        ("v1.0", ("v1.0", "model")),
        ("v1.0/", ("v1.0", "model")),
        ("x.safetensors/", ("x.safetensors", "model")),
        ("there.safetensors", ("there.safetensors", "model")),
        ("model.bin", ("model.bin", "model")),
        (".", ("", "model")),
    ],
)
def test_only_a_name_with_the_suffix_means_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, place: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").mkdir()
    assert split_model_path(path) == (Path(place[0]), place[1])
    save({"w": np.ones(3)}, path)
    assert (tmp_path / place[0] / f"{place[1]}.safetensors").is_file()
    assert load(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("path", ["", ".safetensors", "deep/.safetensors", "model.safetensors.index.json"])
def test_a_name_that_is_neither_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"expected NAME\.safetensors or a directory"):
        save({"w": np.ones(3)}, path)
    assert not list(tmp_path.iterdir())


def test_a_run_writes_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    assert require_directory(tmp_path / "v1.0") == tmp_path / "v1.0"
    with pytest.raises(SpecError, match=r"expected a directory, for several files, got '.*x\.safetensors'"):
        require_directory(tmp_path / "x.safetensors")
    with pytest.raises(SpecError, match=r"got the file .*notes': choose another place"):
        require_directory(tmp_path / "notes")
