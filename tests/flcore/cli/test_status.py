"""`flcore status`: a run, a job, a federation; as text, as JSON, on a terminal; and hostile text in it."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import flcore
from flcore import Arrays, Job, QuorumError, Task, Update
from flcore.cli.status_live import AnyStatus, show_changes, show_once
from flcore.server.events import RunEnded, RunStarted
from flcore.server.history_table import read_history
from flcore.status import (
    ClientStatus,
    FederationStatus,
    JobStatus,
    Refusal,
    ResourceStatus,
    RoundStatus,
    SiteStatus,
    StatusBoard,
    parse_status,
)
from flcore.status.status_file import keep_status_file
from tests.flcore.cli.test_show import write_run
from tests.flcore.command import said
from tests.flcore.status.played_job import PlayedJob

NOW = 1_700_000_000.0
RUNNING = JobStatus(
    "digits",
    "run-1",
    "running",
    round=3,
    rounds=60,
    rounds_over=2,
    task="train",
    asked=3,
    answered=1,
    updated_s=NOW,
    time_left_s=130.4,
    bytes_sent=12_000_000,
    bytes_received=3_400_000,
    megabytes_per_s=2.25,
    metrics={"loss": 0.5262, "accuracy": 0.84},
    refusals={"non-finite": 2, "join": 1},
    last_refusals=(Refusal(NOW - 5, "odd", "non-finite", "element 7 is nan", "train", 3),),
    clients=(
        ClientStatus("north", True, "training", "train", 3, progress=0.4, bytes_sent=6_000_000, last_seen_s=NOW - 2),
        ClientStatus("odd", True, "refused", "train", 3, refusals={"non-finite": 2}, last_reason="element 7 is nan"),
        ClientStatus("south", False, "lost", "train", 3, last_seen_s=NOW - 90, last_reason="connection lost"),
        ClientStatus("west"),
    ),
    last_rounds=(
        RoundStatus(2, "over", seconds={"round": 4.5}, sampled=3, updates=2, train={"loss": 0.5}, bytes_sent=1_000_000),
        RoundStatus(3, "running"),
    ),
    resources=ResourceStatus(1 << 30, 624 << 20, 12 << 20, 402 << 20, 31_200_000_000, 63_000_000_000),
)
FEDERATION = FederationStatus(
    (
        RUNNING,
        JobStatus("next", "next-2", "queued", "expected a quorum of 2 sites, 1 is there", rounds=5),
        JobStatus("old", "old-1", "aborted", "aborted by root", rounds=5, rounds_over=2),
        JobStatus("full", "full-0", "interrupted", "interrupted: No space left on device", rounds=5, rounds_over=2),
    ),
    (SiteStatus("north", True, ("run-1",)), SiteStatus("south", False)),
)


def printed(status: AnyStatus, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_once(status, Console(file=io.StringIO()), as_json=False)
    return capsys.readouterr().out.splitlines()


def on_terminal(*statuses: AnyStatus, width: int = 200) -> str:
    """Return what a terminal shows in the end, without colours."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=60, legacy_windows=False)
    if len(statuses) == 1:
        show_once(statuses[0], console, as_json=False)
    else:
        show_changes(statuses, console, as_json=False)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_a_job_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(RUNNING, capsys) == [
        "job      digits, run-1",
        "state    running, round 3",
        "task     train: 1 of 3 answers are in",
        "rounds   2 of 60 are over, about 2 min 10 s left",
        "bytes    12.0 MB sent, 3.40 MB received, 2.2 MB/s",
        "metrics  loss 0.5262, accuracy 0.84",
        "memory   12 MiB of 624 MiB for staged updates, budget 1,024 MiB, 402 MiB resident",
        "disk     31.2 GB of 63.0 GB are free",
        "refused  2 non-finite, 1 join",
        "",
        "client  state            task     sent     received  MB/s  seen            refused       reason",
        "north   training 40 %    train 3  6.00 MB  0 B       -     2 s ago         -",
        "odd     refused          train 3  0 B      0 B       -     -               2 non-finite  element 7 is nan",
        "south   lost             train 3  0 B      0 B       -     1 min 30 s ago  -             connection lost",
        "west    never connected  -        0 B      0 B       -     -               -",
        "",
        "at                    client  kind        reason",
        "2023-11-14T22:13:15Z  odd     non-finite  element 7 is nan",
        "",
        "round  state    clients  seconds  bytes    metrics   reason",
        "2      over     2 of 3   4.5      1.00 MB  loss 0.5",
        "3      running  -        -        -",
    ]


def test_a_federation_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(FEDERATION, capsys) == [
        "",
        "id      state        rounds  clients  MB/s  left        refused  reason",
        "run-1   running      2/60    0        2.2   2 min 10 s  3",
        "next-2  queued       0/5     -        0.0   -           -        expected a quorum of 2 sites, 1 is there",
        "old-1   aborted      2/5     -        -     -           -        aborted by root",
        "full-0  interrupted  2/5     -        -     -           -        interrupted: No space left on device",
        "",
        "site   state      jobs",
        "north  connected  run-1",
        "south  away",
    ]
    assert printed(FederationStatus(), capsys)[-1] == "no jobs"


def test_a_terminal_shows_the_same_words() -> None:
    shown = on_terminal(RUNNING)
    for words in ("running, round 3", "about 2 min 10 s left", "training 40 %", "element 7 is nan", "never connected"):
        assert words in shown
    assert "No space left on device" in on_terminal(FEDERATION)


def test_a_watched_job_is_drawn_in_the_place_of_the_last_one() -> None:
    done = JobStatus("digits", "run-1", "done", rounds=60, rounds_over=60, updated_s=NOW)
    shown = on_terminal(RUNNING, done)
    assert shown.index("running, round 3") < shown.rindex("60 of 60 are over")


def test_a_reason_is_shown_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "/srv/" + "a long path/" * 20 + "history.jsonl: No space left on device"
    status = replace(
        RUNNING,
        reason=reason,
        clients=(ClientStatus("north", True, "failed", "train", 3, last_reason=reason),),
        last_refusals=(Refusal(NOW, "north", "non-finite", reason),),
        last_rounds=(RoundStatus(2, "over", reason=reason),),
    )
    assert sum(line.endswith("No space left on device") for line in printed(status, capsys)) == 4
    federation = FederationStatus((JobStatus("a", "a-1", "failed", reason),))
    assert printed(federation, capsys)[-1].endswith("No space left on device")
    for width in (200, 80):
        for shown in (on_terminal(status, width=width), on_terminal(federation, width=width)):
            assert max(map(len, shown.splitlines())) <= width
            folded = re.sub(r"\s", "", shown)
            assert folded.count("/srv/alongpath") == folded.count("Nospaceleftondevice") >= 1, shown


def test_json_is_one_document_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    show_changes(iter([RUNNING, RUNNING]), Console(file=io.StringIO()), as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert [parse_status("job", line.encode()) for line in lines] == [RUNNING, RUNNING]
    show_once(FEDERATION, Console(file=io.StringIO()), as_json=True)
    assert parse_status("federation", capsys.readouterr().out.encode()) == FEDERATION


def test_hostile_text_controls_no_terminal_and_starts_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As a status file that somebody has altered has it: a board escapes it before."""
    evil = "[red]x[/red]\x1b[2J\nstate    done"
    hostile = JobStatus(
        evil,
        evil,
        "failed",
        evil,
        metrics={evil: 1.0},
        refusals={evil: 1},
        clients=(ClientStatus(evil, True, task=evil, last_reason=evil, refusals={evil: 1}),),
        last_refusals=(Refusal(NOW, evil, evil, evil),),
        last_rounds=(RoundStatus(1, "over", reason=evil),),
    )
    lines = printed(hostile, capsys)
    assert all(line.isprintable() for line in lines) and not any(line.startswith("state    done") for line in lines)
    shown = on_terminal(hostile)
    assert "[red]x[/red]" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("failed", "1 of 2 answers are in"),
        ("aborted", "aborted by root"),
        ("interrupted", "No space left on device"),
        ("stopped", "the server was stopped"),
        ("waiting", "0 of the 2 clients needed are connected"),
    ],
)
def test_each_state_shows_as_what_it_is(state: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = JobStatus("job", "run-1", state, reason)  # type: ignore[arg-type]
    assert f"state    {state}: {reason}" in printed(status, capsys)
    assert f"{state}: {reason}" in on_terminal(status)


# The command.


@pytest.fixture
def failed_run(tmp_path: Path) -> Path:
    """A run of three rounds in `run`, whose status file says that its disk was full."""
    write_run(tmp_path / "run", end="interrupted", reason="the server's disk failed; its log says why")
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    job = PlayedJob(clients=("a", "b"))
    job.board = StatusBoard("hospital", 3, ("a", "b"), clock=lambda: job.now)
    with keep_status_file(job.board, tmp_path / "run"):
        job.tell(RunStarted(described["id"], "hospital", "f", "c", "1"))
        job.join("a")
        job.send("a", "b")
        job.finish(1)
        job.tell(RunEnded("the job failed", True, "interrupted", "history.jsonl: No space left on device"))
    return tmp_path


def test_the_command_shows_how_a_run_ended(failed_run: Path) -> None:
    lines = said("status", "run", cwd=failed_run).splitlines()
    assert "state    interrupted: history.jsonl: No space left on device" in lines
    assert "rounds   1 of 3 are over" in lines
    watched = said("status", "run", "--watch", "--json", cwd=failed_run)
    assert json.loads(watched)["state"] == "interrupted"  # one document: it is over


def test_the_command_shows_a_run_that_is_done_from_its_history(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    lines = said("status", "run", cwd=tmp_path).splitlines()
    assert lines[1:3] == ["state    done", "rounds   3 of 3 are over"]
    last = next(line for line in lines if line.startswith("3 "))
    assert last.startswith("3      over   1 of 2   1.5      6.25 MB  loss 0.3333, accuracy 0.5")
    [failed] = read_history(tmp_path / "run")[-1].failed.values()
    assert last.endswith("; ".join(f"{client}: {reason}" for client, reason in failed.items())), failed


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("nowhere", "expected the directory of a run, or the id of a job such as digits-12, got nowhere"),
        (".", "expected the directory of a run, which holds run.json"),
        ("digits-12", "digits-12 is no run's directory; as the id of a job"),
    ],
)
def test_the_command_says_what_it_expected(
    argument: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert expected in said("status", argument, cwd=tmp_path, code=1)


def test_a_run_that_failed_before_its_first_result_says_who_failed_and_why(tmp_path: Path) -> None:
    def zeros(seed: int) -> Arrays:
        return {"w": np.zeros(2)}

    def broken(model: Arrays, task: Task) -> Update:
        raise ValueError("no data today")

    job = Job.of(model=zeros, train=broken, clients=["north"], changes={"server.on_quorum_failure": "fail"})
    with pytest.raises(QuorumError):
        flcore.run(job, workers=0, out=tmp_path / "run", progress=False)
    end = re.compile(r"^state +failed: .*north: task 'train' raised ValueError: no data today$", re.MULTILINE)
    for command in ("status", "show"):
        assert end.search(said(command, "run", cwd=tmp_path))
