"""`flcore aggregate`: as its page has it, and what it says when something is wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import flcore
from tests.flcore.command import said
from tests.test_readme import ROOT, blocks, commands, shell

PAGE = (ROOT / "docs/checkpoints.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the checkpoints of the page: all ones but for a factor."""
    names = [
        "hospital-a",
        "hospital-b",
        *(f"{name}/model" for name in ("run-1", "run-2", "run-3", "math", "code", "base")),
    ]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        flcore.save({"w": np.full((2, 3), number, np.float32)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def value_of(path: Path) -> float:
    (value,) = set(flcore.open_model(path).tensor("w").astype(float).reshape(-1).tolist())
    return float(value)


def test_the_page_as_printed(folder: Path) -> None:
    (script,) = blocks("sh", PAGE)
    assert len(commands(script)) == 3
    printed = shell(script, folder)
    assert re.match(r"global\.safetensors: 2 checkpoints, 1 tensors, 6 parameters, 0\.0 MB in \d", printed)
    assert value_of(folder / "global.safetensors") == 0.75
    assert value_of(folder / "merged") == 3.0
    assert flcore.open_model(folder / "merged").spec.tensors[0].dtype == "bfloat16"
    assert value_of(folder / "both") == pytest.approx(7 + 0.4 * ((5 - 7) + (6 - 7)))


def test_weights_from_a_file(folder: Path) -> None:
    (table,) = blocks("text", PAGE)
    (folder / "weights.csv").write_text(table)
    given = ["hospital-b.safetensors", "hospital-a.safetensors"]
    printed = said("aggregate", *given, "--weights", "weights.csv", "--out", "global", "--json", cwd=folder)
    report = json.loads(printed)
    assert report["files"] == ["global/model.safetensors"] and report["parameters"] == 6
    assert value_of(folder / "global") == 0.75


A, B = "hospital-a.safetensors", "hospital-b.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([A, B, "--weight", "1"], "Invalid value for --weight: 1 for 2 checkpoints"),
        ([A, B, "--scale", "2"], "Invalid value for --scale: it scales differences from a --base"),
        ([A, "--base", B, "--accumulate", "float32"], "differences are added up in float64"),
    ],
)
def test_options_that_do_not_fit_together(folder: Path, arguments: list[str], words: str) -> None:
    assert words in said("aggregate", *arguments, "--out", "x.safetensors", cwd=folder, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.safetensors"], "flcore: nowhere.safetensors: No such file or directory"),
        ([A, "weights.csv"], "flcore: weights.csv is no safetensors file"),
        ([A, B, "--weight", "1", "--weight", "-1"], f"client '{B}': a weight is a finite number >= 0"),
        ([A, B, "--rule", "median"], "rule 'median' does not exist; expected one of mean"),
        ([A, "--budget", "1KB"], "64MiB would do"),
        ([A, "--weights", "bad.csv"], "bad.csv, line 1: expected CHECKPOINT,WEIGHT, got 'hospital-a.safetensors,much'"),
        ([A, "--weights", "weights.csv"], f"weights.csv, line 1: '{B}' is none of the checkpoints given"),
        ([B, A, "--weights", "weights.csv"], f"weights.csv has no weight for '{A}'"),
        ([B, A, "--weights", "nowhere.csv"], "flcore: nowhere.csv: No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder: Path, arguments: list[str], words: str) -> None:
    (folder / "weights.csv").write_text(f"{B},2\n")
    (folder / "bad.csv").write_text(f"{A},much\n")
    printed = said("aggregate", *arguments, "--out", "x.safetensors", cwd=folder, code=1)
    assert words in printed and len(printed.splitlines()) == 1
    assert not (folder / "x.safetensors").exists()
