"""Runs as a server leaves them on disk, written without a server."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.events import AnswerRefused, ClientJoined, Event, JoinRefused, RunEnded, RunStarted
from flcore.server.history import Participation, RoundRecord
from flcore.server.run_directory import RunDirectory

HOSTILE = "</td></svg><script>alert(1)</script><img src=x onerror=alert(2)> \"' &amp; $\\frac{$ \x1b[2J\u202e"
"""A text that would break out of HTML, an attribute, a formula or a terminal line."""

DONE = RunEnded("the job is done", failed=False)
FAILED = RunEnded("the job failed: round 4 has 1 update, and its quorum is 2", failed=True, end="failed")
ABORTED = RunEnded("aborted by alice", failed=True, end="aborted")
STOPPED = RunEnded("the server was stopped", failed=True, end="stopped")
INTERRUPTED = RunEnded("the server's disk failed; its log says why", failed=True, end="interrupted")


def write_run(
    path: Path,
    records: Sequence[RoundRecord],
    *,
    end: RunEnded | None = DONE,
    events: Sequence[Event] = (),
    job: str = "hospital",
    version: str = "0.1.0",
) -> Path:
    """Write a run's directory: `run.json`, the history and the audit log. Returns its path."""
    with RunDirectory(path, job=job, contract_fingerprint="f" * 64) as directory, AuditLog(path / AUDIT_FILE) as log:
        log(RunStarted(directory.id, job, "f" * 64, "c" * 64, version))
        for record in records:
            directory.append(record)
        for event in [*events, *([] if end is None else [end])]:
            log(event)
    return path


def hospital_rounds() -> list[RoundRecord]:
    """Three rounds: all clients count; one fails and one is refused; a round that is skipped."""
    return [
        RoundRecord(
            1,
            ("a", "b", "c"),
            {
                "a": Participation(10.0, {"loss": 1.0}, 700, 0.25),
                "b": Participation(30.0, {"loss": 0.5}, 700, 0.5),
                "c": Participation(60.0, {"loss": 0.25}, 700, 4.0),
            },
            {},
            {"loss": 0.4},
            {"accuracy": 0.5},
            3_000,
            2_100,
            {"train": 4.0, "aggregate": 0.5, "round": 5.0},
            is_best=True,
        ),
        RoundRecord(
            2,
            ("a", "b", "c"),
            {"a": Participation(10.0, {"loss": 0.75}, 700, 0.25)},
            {
                "train": {"b": "no answer within 60 s", "c": "expected at most 1000, got 1e9"},
                "validate": {"a": "it raised"},
            },
            {"loss": 0.75},
            {"accuracy": 0.75},
            3_000,
            700,
            {"train": 60.0, "aggregate": 0.5, "round": 61.0},
            asked_again=1,
            is_best=True,
        ),
        RoundRecord(
            3,
            ("a", "b"),
            {},
            {"train": {"b": "no answer within 60 s"}},
            seconds={"train": 60.0, "round": 60.0},
            skipped="1 of 2 updates",
        ),
    ]


HOSPITAL_EVENTS: tuple[Event, ...] = (
    *(ClientJoined(name, 1) for name in "abc"),
    JoinRefused("eve", "'eve' is not in the job"),
    AnswerRefused("train", "c", 2, 2, "out-of-bounds", "expected at most 1000, got 1e9"),
)


def write_hospital(path: Path, end: RunEnded | None = DONE) -> Path:
    """Write the run of `hospital_rounds`."""
    return write_run(path, hospital_rounds(), end=end, events=HOSPITAL_EVENTS)


def many_rounds(clients: int, rounds: int) -> list[RoundRecord]:
    """Rounds of many clients. Client 007 has a loss, and client 009 seconds, far from all others."""
    found = []
    for number in range(1, rounds + 1):
        level = math.exp(-number / 50)
        updates = {}
        for index in range(clients):
            loss = level + (index * 7 + number * 3) % 11 / 100 + (1.0 if index == 7 else 0.0)
            seconds = 1.0 + (index * 5 + number) % 13 / 10 + (20.0 if index == 9 else 0.0)
            updates[f"site-{index:03}"] = Participation(1.0 + index, {"loss": loss}, 1_000, seconds)
        failed = {"site-000": "no answer within 60 s"} if number % 2 else {}
        for name in failed:
            del updates[name]
        names = tuple(f"site-{index:03}" for index in range(clients))
        metrics = {"accuracy": 1 - level / 2}
        phases = {"train": 2.0, "aggregate": 0.5, "round": 3.0}
        traffic = 1_000 * len(updates)
        found.append(
            RoundRecord(
                number,
                names,
                updates,
                {"train": failed} if failed else {},
                {"loss": level},
                metrics,
                traffic,
                traffic,
                phases,
            )
        )
    return found


def history_lines(path: Path) -> list[RoundRecord]:
    """Return a run's history as its file has it, read without flcore's reader."""
    return [RoundRecord.from_fields(json.loads(line)) for line in (path / "history.jsonl").read_text().splitlines()]
