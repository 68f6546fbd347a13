"""docs/non-iid.md as printed: its command, its Python, and each of its jobs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import flcore
from flcore.heterogeneity import model_tensors
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parents[3] / "docs/non-iid.md").read_text()
JOBS = {"prox": "ProximalTerm", "scaffold": "Scaffold", "nova": "nova_update"}


def block(language: str, text: str) -> str:
    (found,) = [each for each in blocks(language, PAGE) if text in each]
    return found


def write_job(directory: Path, name: str) -> flcore.Job:
    (directory / "job.toml").write_text(block("toml", f'name = "{name}"'))
    (directory / "train.py").write_text(block("python", f"import {JOBS[name]}" if name != "nova" else "nova_update\n"))
    (directory / "problem.py").write_text(block("python", "def load(site)"))
    return flcore.Job.load(directory)


def solution(weights: list[float]) -> dict[str, float]:
    """The least-squares solution over all sites, each with a weight."""
    namespace: dict[str, object] = {}
    exec(block("python", "def load(site)"), namespace)
    sites = [flcore.Site(name, ("north", "south", "west")) for name in ("north", "south", "west")]
    rows, targets = [], []
    for site, weight in zip(sites, weights, strict=True):
        x, y = namespace["load"](site)  # type: ignore[operator]
        scale = np.sqrt(weight / len(y))
        rows.append(np.column_stack([x, np.ones(len(y))]) * scale)
        targets.append(y * scale)
    *slope, offset = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))[0]
    return {"slope": slope, "offset": offset}


@pytest.mark.parametrize("name", JOBS)
def test_the_job_as_printed(tmp_path: Path, name: str) -> None:
    history, model = flcore.run(write_job(tmp_path, name), workers=0)
    losses = [record.train["loss"] for record in history]
    assert len(losses) == 40 and losses[-1] < losses[0] / 4
    assert set(model_tensors(model.arrays())) == {"slope", "offset"}


def test_the_job_of_scaffold_comes_to_the_common_optimum(tmp_path: Path) -> None:
    job = write_job(tmp_path, "scaffold").with_overrides(rounds=300)
    found, right = model_tensors(flcore.run(job, workers=0).model.arrays()), solution([1, 1, 1])
    np.testing.assert_allclose(found["slope"], right["slope"], atol=1e-3)
    np.testing.assert_allclose(found["offset"], right["offset"], atol=1e-3)


def test_the_python_as_printed(tmp_path: Path) -> None:
    script = block("python", "label_counts")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", script)


def test_the_command_as_printed(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(1000) % 10)
    [words] = commands(block("sh", "flcore partition"))
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, check=True)
    assert len(np.load(tmp_path / "partition.npz")) == 8 and (tmp_path / "partition.png").exists()


def test_every_contract_of_the_page_is_of_a_job_here() -> None:
    assert [tomllib.loads(each)["name"] for each in blocks("toml", PAGE)] == list(JOBS)
