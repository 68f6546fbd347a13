"""A record that is incomplete or damaged is refused in words, with nothing changed; put back, the run goes on."""

import random
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flcore import RecordError
from flcore.federation.job_files import JobDirectories
from flcore.server.call_log import CallLog
from flcore.server.run_directory import RunDirectory
from flcore.server.run_state import RunState
from tests.flcore.conftest import Stage
from tests.flcore.server.test_continuation import kill, play, same

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)


@pytest.fixture
def killed(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """The directory of a run that was killed in round 3, and the model of the run that was not."""
    kill(monkeypatch, "end_call", 8, tmp_path / "out", tmp_path / "copy")
    return tmp_path / "copy", play(stage, tmp_path / "out")


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run but the lock of the copied process."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(("run.lock", ".models"))}


def opened(run: Path) -> None:
    RunDirectory(run, job="j", contract_fingerprint="f" * 64).close()


@pytest.mark.parametrize("moved", ["state.sqlite-wal", "state.sqlite"])
def test_a_start_without_a_part_of_the_record_changes_nothing(
    stage: Stage, tmp_path: Path, killed: tuple[Path, dict[str, Any]], moved: str
) -> None:
    run, expected = killed
    (run / moved).rename(tmp_path / "aside")
    before = contents(run)
    for _ in range(2):
        with pytest.raises(RecordError, match=r"is not over \(2 rounds.*state\.sqlite (lacks|is missing).*--fresh"):
            opened(run)
        assert contents(run) == before
    jobs = JobDirectories(tmp_path / "jobs")
    jobs.run("t-1").parent.mkdir(parents=True)
    shutil.copytree(run, jobs.run("t-1"))
    assert not jobs.has_ended("t-1")
    (tmp_path / "aside").rename(run / moved)
    assert same(play(stage, run), expected)


def test_a_history_that_is_longer_than_the_record_is_told_and_kept(
    stage: Stage, killed: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = killed
    last = (run / "history.jsonl").read_text().splitlines()[-1]
    with (run / "history.jsonl").open("a") as file:
        file.write(last + "\n")
    before = contents(run)
    with pytest.raises(RecordError, match=r"has 3 rounds, and the run's record .* has 2: the record has lost its end"):
        opened(run)
    assert contents(run) == before


def test_a_record_that_is_older_than_its_last_change_is_refused(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, older = tmp_path / "copy", tmp_path / "older"
    kill(monkeypatch, "add_answer", 2, tmp_path / "out", older)
    kill(monkeypatch, "add_answer", 3, tmp_path / "out", run)
    play(stage, tmp_path / "out")
    for file in older.glob("state.sqlite*"):
        shutil.copy(file, run)
    with pytest.raises(RecordError, match="ends before them"):
        opened(run)


@pytest.mark.parametrize("damage", ["bit", "end", "file"])
def test_a_published_model_that_is_damaged_is_refused_before_the_history_is_touched(
    stage: Stage, killed: tuple[Path, dict[str, Any]], damage: str
) -> None:
    run, _ = killed
    (model,) = (run / ".published").iterdir()
    content = model.read_bytes()
    names = {path.name for path in run.glob("*.safetensors")}
    for path in (model, *run.glob("*.safetensors")):  # links of one file, which the copy has made several
        path.unlink()
    if damage != "file":
        model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "bit" else content[:-1])
    history = (run / "history.jsonl").read_bytes()[:-40]
    (run / "history.jsonl").write_bytes(history)
    with pytest.raises(RecordError, match=r"\.published/\d+\.safetensors, a model .* (damaged|missing).*--fresh"):
        stage.open(wait_for=3, rounds=3, out=run, best=None, durability="disk")
    assert (run / "history.jsonl").read_bytes() == history
    assert names and not list(run.glob("*.safetensors"))


def said(run: Path) -> str:
    """All that a record says."""
    with RunState(run / "state.sqlite") as state:
        log, answers = CallLog(state), [state.answers(call) for call in range(1, 30)]
        replayed = [log.publications, log.released, log.last_connected]
        rows = [state.facts(), state.calls(), state.rounds(), state.receipts(), state.workflow_values()]
        return repr([rows, answers, replayed])


def flips(run: Path, aside: Path, name: str, number: int, seed: int) -> Counter[str]:
    """Flip one bit of a file in copies of a run; count how each ends: unchanged, or refused by a class of errors."""
    draw, expected, ends = random.Random(seed), said(shutil.copytree(run, aside / "whole")), Counter[str]()
    content = (run / name).read_bytes()
    for flip in range(number):
        copy = aside / str(flip)
        shutil.copytree(run, copy)
        position = draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[position] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(flipped)
        try:
            opened(copy)
            ends["same" if said(copy) == expected else f"silently different: {position}"] += 1
        except RecordError:
            ends["refused"] += 1
        shutil.rmtree(copy)
    return ends


@pytest.mark.parametrize("name", ["state.sqlite", "state.sqlite-wal"])
@pytest.mark.parametrize("number", [40, pytest.param(400, marks=pytest.mark.stress)])
def test_a_bit_that_flips_is_noticed_or_has_no_effect(
    stage: Stage, tmp_path: Path, killed: tuple[Path, dict[str, Any]], name: str, number: int
) -> None:
    run, _ = killed
    if name == "state.sqlite":  # all of it in the database's own file
        with sqlite3.connect(run / name) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    (tmp_path / "flips").mkdir()
    ends = flips(run, tmp_path / "flips", name, number, seed=3)
    print(f"{number} flips in {name}: {dict(ends)}")
    assert set(ends) <= {"same", "refused"} and ends["refused"]
