"""`flcore show`: a run that goes on, that is done, that was stopped or killed, and what is no run."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from flcore.errors import HistoryError
from flcore.model.model import Model
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.events import AnswerRefused, RunEnd, RunEnded
from flcore.server.history import Participation, RoundRecord
from flcore.server.results import Results
from flcore.server.run_directory import HISTORY_FILE, LOCK_FILE, RUN_FILE, RunDirectory
from flcore.server.run_summary import CRASHED, read_run
from tests.flcore.command import said
from tests.flcore.conftest import Stage, adding

PART = Participation(2.0, {"loss": 0.5}, 700, 0.25)


def opened(path: Path) -> RunDirectory:
    return RunDirectory(path, job="hospital", contract_fingerprint="f" * 64)


def write_rounds(directory: RunDirectory, rounds: int = 3) -> None:
    """Publish models of 4 MB as a job does, of which every second is kept and the second is the best."""
    results = Results(directory, "accuracy:max", checkpoint_every=2)
    for number in range(1, rounds + 1):
        model = Model.of({"w": np.full(1_000_000, number, np.float32)})
        metrics = {"accuracy": 0.75 if number == 2 else 0.5}
        is_best, checkpoint, *_ = results.publish(model, metrics, number)
        results.add(
            RoundRecord(
                number,
                ("a", "b"),
                {"a": PART},
                {"train": {"b": "it raised"}},
                {"loss": 1 / number},
                metrics,
                5_000_000,
                1_250_000,
                {"round": 1.5},
                asked_again=1,
                is_best=is_best,
                checkpoint=checkpoint,
            )
        )


def write_run(path: Path, *, end: RunEnd = "done", reason: str = "the job is done") -> None:
    with opened(path) as directory, AuditLog(path / AUDIT_FILE) as log:
        write_rounds(directory)
        log(RunEnded(reason, end != "done", end))


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in path.iterdir() if each.is_file()}


def test_a_run_that_is_done(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    described = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert said("show", "run", cwd=tmp_path).splitlines() == [
        f"run          {described['id']}",
        f"job          hospital, contract {'f' * 64}",
        f"started      {described['started']}",
        "state        done",
        "",
        "round  clients    loss  accuracy   MB  seconds",
        "    1   1 of 2       1       0.5  6.2     1.50  best, retries: 1, left out: 1",
        "    2   1 of 2     0.5      0.75  6.2     1.50  best, retries: 1, left out: 1",
        "    3   1 of 2  0.3333       0.5  6.2     1.50  retries: 1, left out: 1",
        "",
        "b was left out of 3 of 3 rounds: it raised",
        "",
        "model        model.safetensors        4.00 MB",
        "best         best.safetensors         4.00 MB, round 2",
        "checkpoint   round-00002.safetensors  4.00 MB, round 2",
    ]
    assert contents(tmp_path / "run") == before, "it only reads"


def test_a_run_that_ended_early_says_why_and_names_its_results(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as directory:
        results = Results(directory, None)
        results.publish(Model.of({"w": np.zeros(3, np.float32)}), {})
        results.add(RoundRecord(1, seconds={"round": 1.0}, stopped="loss 0.1 has reached the target 0.2"))
        results.save_results(b"{}")
    lines = said("show", "run", cwd=tmp_path).splitlines()
    assert "    1        -  0.0     1.00  the run ended early: loss 0.1 has reached the target 0.2" in lines
    assert lines[-1] == "results      results.json"


def test_a_run_as_json(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run/round-00002.safetensors").unlink()
    shown = json.loads(said("show", "run", "--json", cwd=tmp_path))
    lines = (tmp_path / "run" / HISTORY_FILE).read_text().splitlines()
    assert shown.pop("history") == [json.loads(line) for line in lines]
    described = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    nbytes = (tmp_path / "run/model.safetensors").stat().st_size
    assert shown == {
        **described,
        "state": "done",
        "owner": "",
        "reason": "",
        "model": {"file": "model.safetensors", "round": None, "bytes": nbytes},
        "best": {"file": "best.safetensors", "round": 2, "bytes": nbytes},
        "checkpoints": [{"file": "round-00002.safetensors", "round": 2, "bytes": None}],
    }


def test_a_run_that_goes_on_names_its_owner_and_is_not_disturbed(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as directory:
        printed = said("show", "run", cwd=tmp_path)
        assert "no round has finished" in printed and "model        model.safetensors  not there" in printed
        write_rounds(directory)
        with (tmp_path / "run" / HISTORY_FILE).open("a") as history:
            history.write('{"round": 4, "sampl')  # a line of which the server has written a part
        printed = said("show", "run", cwd=tmp_path)
        assert re.search(rf"^state        running: process {os.getpid()} on .*, since 20", printed, re.MULTILINE)
        assert "\n    3   1 of 2 " in printed
        assert (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("end", "reason", "shown"),
    [
        ("stopped", "the server was stopped", "the server was stopped"),
        ("failed", "the job failed: \x1b[2J", r": \x1b[2J"),
        ("interrupted", "the server's disk failed; its log says why", "disk failed"),
    ],
)
def test_a_run_that_is_not_done_says_how_it_ended_and_why(tmp_path: Path, end: RunEnd, reason: str, shown: str) -> None:
    write_run(tmp_path / "run", end=end, reason=reason)
    (state,) = re.findall(r"^state        (.*)$", said("show", "run", cwd=tmp_path), re.MULTILINE)
    assert state.startswith(f"{end}: ") and shown in state


def test_a_late_answer_that_is_refused_after_the_end_changes_no_end(tmp_path: Path) -> None:
    write_run(tmp_path / "run", end="aborted", reason="aborted by alice")
    with AuditLog(tmp_path / "run" / AUDIT_FILE) as log:
        log(AnswerRefused("train", "b", 3, 1, "late", "the job is over"))
    assert "state        aborted: aborted by alice\n" in said("show", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("round-00002.safetensors", "../elsewhere", "as the checkpoint of round 2 in run/history.jsonl"),
        ("it raised", r"\ud800", "line 1 of run/history.jsonl; failed.train.b: expected text, got a lone surrogate"),
    ],
)
@pytest.mark.parametrize("command", ["show", "report"])
def test_an_altered_history_is_an_error_with_its_place(
    command: str, old: str, new: str, words: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run")
    history = tmp_path / "run" / HISTORY_FILE
    assert old in history.read_text()
    history.write_text(history.read_text().replace(old, new))
    line = said(command, "run", cwd=tmp_path, code=1)
    assert line.startswith("flcore: expected ") and words in line and "was altered" in line and line.count("\n") == 1


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = tmp_path / "run"
    (run / LOCK_FILE).write_text("process 1 on nowhere, since 2026\n")  # it stays; the lock ends with its process
    log = (run / AUDIT_FILE).read_bytes()
    assert "state        done\n" in said("show", "run", cwd=tmp_path)
    (run / AUDIT_FILE).write_bytes(log[:-1])  # an entry that lacks its line end is one
    assert "state        done\n" in said("show", "run", cwd=tmp_path)
    for left in (log[:-2], b"", log.replace(b'"failed":false', b'"failed":true ')):
        (run / AUDIT_FILE).write_bytes(left)
        printed = said("show", "run", cwd=tmp_path)
        assert f"state        stopped: {CRASHED}\n" in printed
    (run / AUDIT_FILE).unlink()
    assert "state        stopped: " in said("show", "run", cwd=tmp_path)


def test_a_model_in_shards_has_the_size_of_all_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = tmp_path / "run"
    (run / "model.safetensors").unlink()
    for number in (1, 2):
        (run / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes(3_000_000))
    shards = {f"w{number}": f"model-0000{1 + number % 2}-of-00002.safetensors" for number in range(5)}
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert re.search(r"^model +model.safetensors.index.json +6.00 MB$", said("show", "run", cwd=tmp_path), re.MULTILINE)
    (run / "model.safetensors.index.json").write_text("[]")
    printed = said("show", "run", cwd=tmp_path, code=1)
    assert printed.startswith("flcore: expected the index of a model in run/model.safetensors.index.json; ")


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({RUN_FILE: None}, "flcore: expected the directory of a run, which holds run.json, got run; "),
        ({RUN_FILE: "{"}, "flcore: expected id, job, fingerprint and started as text in run/run.json, got '{': "),
        ({RUN_FILE: '{"id": 3, "job": "", "fingerprint": "", "started": ""}'}, "flcore: expected id, job, "),
        ({RUN_FILE: "[1]"}, "flcore: expected id, job, "),
        ({HISTORY_FILE: "nothing\n"}, "flcore: expected a round in line 1 of run/history.jsonl; "),
        ({HISTORY_FILE: RoundRecord(1).to_json() + '\n{"round": "2"}\n'}, "flcore: expected a round in line 2 of run/"),
    ],
)
def test_what_is_damaged_is_one_line(tmp_path: Path, damaged: dict[str, str | None], message: str) -> None:
    write_run(tmp_path / "run")
    for name, content in damaged.items():
        if content is None:
            (tmp_path / "run" / name).unlink()
        else:
            (tmp_path / "run" / name).write_text(content)
    for options in ((), ("--json",)):
        printed = said("show", "run", *options, cwd=tmp_path, code=1)
        assert printed.startswith(message) and printed.count("\n") == 1


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert said("show", "nowhere", cwd=tmp_path, code=1) == (
        "flcore: expected the directory of a run, or the id of a job such as digits-12, got nowhere\n"
    )
    assert said("show", "file", cwd=tmp_path, code=1).startswith("flcore: expected the directory of a run, ")


@pytest.mark.parametrize("stage", ["in-process"], indirect=True)
def test_a_jobs_own_directory(stage: Stage, tmp_path: Path) -> None:
    stage.open(clients=2, rounds=2, out=tmp_path / "run", checkpoint_every=1)
    stage.client("client-1", adding(1.0))
    stage.client("client-2", adding(3.0))
    history = stage.result().history
    shown = json.loads(said("show", "run", "--json", cwd=tmp_path))
    assert shown["job"] == "staged" and shown["state"] == "done" and shown["best"] is None
    assert shown["history"] == [json.loads(json.dumps(asdict(record))) for record in history]
    assert [each["file"] for each in shown["checkpoints"]] == ["round-00001.safetensors", "round-00002.safetensors"]
    assert all(each["bytes"] for each in [shown["model"], *shown["checkpoints"]])


def test_a_run_that_had_not_begun_is_told(tmp_path: Path) -> None:
    with opened(tmp_path / "run"), AuditLog(tmp_path / "run" / AUDIT_FILE) as log:
        log(RunEnded("the server was stopped", True, "stopped"))
    with pytest.raises(HistoryError, match="had not begun"):
        read_run(tmp_path / "run")
