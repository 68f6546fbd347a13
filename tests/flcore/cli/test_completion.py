"""What the shell completes, and `flcore --version`."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import flcore
from flcore.cli.completion import job_names, run_directories, template_names
from tests.flcore.command import said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("mine/job.toml", "more/other/job.toml", "dim/notes.txt", ".hidden/job.toml", "runs/mine/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("begun", "jobs"),
    [
        ("", ["mine", "digits"]),
        ("m", ["mine"]),
        ("di", ["digits"]),
        ("more/", ["more/other"]),
        (".h", [".hidden"]),
        ("absent/", []),
    ],
)
def test_jobs(here: Path, begun: str, jobs: list[str]) -> None:
    assert job_names(begun) == jobs
    assert job_names(f"{here}/{begun}") == [f"{here}/{job}" for job in jobs if job != "digits"]


def test_runs_and_templates(here: Path) -> None:
    assert run_directories("") == run_directories("runs/m") == ["runs/mine"]
    assert run_directories("ru") == ["runs/"] and run_directories("x") == []
    assert template_names("t") == ["torch", "transformers-lora"]


def command(directory: Path, *arguments: str, **variables: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "flcore", *arguments],
        cwd=directory,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_a_shell_asks_the_command(here: Path) -> None:
    def completed(words: str, at: int) -> list[str]:
        asked = {"_FLCORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return command(here, **asked).split()

    assert completed("flcore ne", 1) == ["new"]
    assert completed("flcore run m", 2) == ["mine"]
    assert completed("flcore new x --template n", 4) == ["numpy"]


def test_the_script_for_a_shell(here: Path) -> None:
    script = command(here, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_FLCORE_COMPLETE=complete_bash" in script


def test_the_version(tmp_path: Path) -> None:
    first, second = said("--version", cwd=tmp_path).splitlines()
    assert first.startswith(f"flcore {flcore.__version__}, {platform.python_implementation()} ")
    assert platform.python_version() in first and platform.machine() in first
    assert second.startswith("kernels: cpu (numba ") and "cuda (" in second
