"""A run as reports read it: how it stands, its contract, the digests of its models."""

import json
import shutil
from pathlib import Path

import pytest

import flcore
from flcore.errors import HistoryError
from flcore.reports.reported_run import read_reported_run, state_text
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.events import RunEnded
from flcore.server.run_directory import RunDirectory
from flcore.server.run_summary import CRASHED
from flcore.status import read_status
from tests.flcore.reports.written_runs import (
    ABORTED,
    DONE,
    FAILED,
    INTERRUPTED,
    STOPPED,
    hospital_rounds,
    write_hospital,
    write_run,
)

TOML = """
name = "tiny"
clients = ["a", "b"]
[server]
model = "t.py:init"
rounds = 2
[client]
executor = "t.py"
[tasks.train]
returns = "weights"
"""
CODE = """
import numpy as np, flcore
def init(seed): return {"w": np.zeros(3, np.float32)}
def train(model, task): return flcore.Update({"w": model["w"] + 1}, weight=1, metrics={"loss": 0.5})
"""


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that flcore made."""
    directory = tmp_path_factory.mktemp("tiny")
    (directory / "job").mkdir()
    (directory / "job/job.toml").write_text(TOML)
    (directory / "job/t.py").write_text(CODE)
    flcore.run(directory / "job", workers=0, out=directory / "run")
    return directory / "run"


@pytest.mark.parametrize(
    ("end", "state", "text"),
    [
        (DONE, "done", "done"),
        (FAILED, "failed", "failed: round 4 has 1 update, and its quorum is 2"),
        (ABORTED, "aborted", "aborted by alice"),
        (STOPPED, "stopped", "stopped: the server was stopped"),
        (INTERRUPTED, "interrupted", "interrupted: the server's disk failed; its log says why"),
        (None, "stopped", f"stopped: {CRASHED}"),
    ],
)
def test_a_run_is_what_its_audit_log_says(end: RunEnded | None, state: str, text: str, tmp_path: Path) -> None:
    run = read_reported_run(write_hospital(tmp_path / "run", end))
    assert read_status(tmp_path / "run").state == run.state, "the same word"
    assert (run.state, state_text(run)) == (state, text)
    assert run.history == hospital_rounds() and run.audit.version == "0.1.0" and run.audit.code_digest == "c" * 64


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", job="hospital", contract_fingerprint="f" * 64) as directory:
        directory.append(hospital_rounds()[0])
        assert read_reported_run(tmp_path / "run").state == "running"


def test_a_run_without_an_audit_log_is_reported_all_the_same(tmp_path: Path) -> None:
    (write_hospital(tmp_path / "run") / AUDIT_FILE).unlink()
    run = read_reported_run(tmp_path / "run")
    assert run.state == "stopped" and run.audit.verification is None and len(run.history) == 3


def test_the_contract_and_the_digests_of_a_real_run(tiny_run: Path) -> None:
    run = read_reported_run(tiny_run)
    assert run.contract is not None and run.contract["name"] == "tiny" and run.total_rounds == 2
    assert run.model.digest.startswith("sha256:") and run.model.is_as_logged is True and run.model.round == 2
    assert "token_key" not in json.dumps(run.contract)


def test_a_model_that_was_changed_is_not_as_logged(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    with (tmp_path / "run/model.safetensors").open("ab") as file:
        file.write(b"x")
    assert read_reported_run(tmp_path / "run").model.is_as_logged is False


def test_a_download_has_its_run_in_a_directory_and_no_contract(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "tiny-1/run", ignore=shutil.ignore_patterns("state.sqlite*"))
    run = read_reported_run(tmp_path / "tiny-1")
    assert run.label == "tiny-1" and run.contract is None and len(run.history) == 2


def test_a_damaged_record_leaves_the_contract_out(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run/state.sqlite").write_bytes(b"no database")
    run = read_reported_run(tmp_path / "run")
    assert run.contract is None and run.state == "done"


def test_reading_changes_nothing(tiny_run: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tiny_run.iterdir() if path.is_file()}
    read_reported_run(tiny_run)
    assert before == {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tiny_run.iterdir() if path.is_file()
    }


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"expected the directory of a run .* got .*nowhere"):
        read_reported_run(tmp_path / "nowhere")
    with pytest.raises(HistoryError, match=r"which holds run\.json"):
        read_reported_run(tmp_path)
    (write_run(tmp_path / "empty", [], end=None) / AUDIT_FILE).write_bytes(b"")
    with pytest.raises(HistoryError, match="had not begun"):
        read_reported_run(tmp_path / "empty")
