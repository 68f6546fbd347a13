"""Each event of a run and of a federation has a line of text and one of JSON, with its level, job, round and client."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from flcore.event_log.event_lines import EventLine, lines_of_run
from flcore.event_log.federation_lines import FEDERATION_LINES
from flcore.event_log.log import EventLog, Log
from flcore.federation.audit import JobOver, JobRequested, JobStarted, RequestRefused, SiteRefused
from flcore.federation.roles import Caller
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    CallRefused,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    ClientRevoked,
    Event,
    HistoryRestored,
    InvalidMetrics,
    JoinRefused,
    ModelPublished,
    NoBestModel,
    RoundFinished,
    RoundSkipped,
    RuleBegan,
    RuleEnded,
    RunContinued,
    RunEnded,
    RunEnding,
    RunStarted,
    StoppedEarly,
    StorageOpened,
    TaskAnswered,
    TaskRetried,
    TaskSent,
    UpdatesFolded,
    WaitBegan,
    WaitEnded,
    WaitingForClients,
)
from flcore.server.history import RoundRecord
from flcore.server.transfer_events import DownloadBegan, DownloadEnded, UploadBegan, UploadEnded, UploadQueued
from tests.flcore.event_log.test_log import CONTRACT

HOSTILE = "bad\nround 9/9: 3 of 3 clients\x1b[2J\x7f" + "x" * 100_000
ALICE = Caller("alice", "lead", "lead", "0" * 64)

OF_RUNS: list[tuple[Any, str, int, str]] = [
    (RunStarted("r1", "job", "0" * 64, "0" * 64, "0.1"), "INFO", 0, ""),
    (RunContinued("r1", 3, 9), "INFO", 0, ""),
    (HistoryRestored((RoundRecord(3),)), "DEBUG", 0, ""),
    (StorageOpened(1 << 30, 624 << 20, int, Path("runs/job")), "DEBUG", 0, ""),
    (RunEnding(), "DEBUG", 0, ""),
    (RunEnded("done", failed=False), "INFO", 0, ""),
    (RunEnded(HOSTILE, failed=True), "ERROR", 0, ""),
    (ClientJoined("north", 1), "INFO", 0, "north"),
    (ClientLeft("north", 0), "INFO", 0, "north"),
    (JoinRefused("north", HOSTILE), "WARNING", 0, "north"),
    (CallRefused("north", "0" * 64, "revoked", HOSTILE), "WARNING", 0, "north"),
    (CallRefused("north", "0" * 64, "unknown-session", HOSTILE), "INFO", 0, "north"),
    (CallRefused("", "", "unknown-session", HOSTILE), "DEBUG", 0, ""),
    (ClientRevoked("north", "0" * 64, HOSTILE), "WARNING", 0, "north"),
    (TaskSent("train", 3, 1, ("north",), "m1"), "DEBUG", 3, ""),
    (DownloadBegan("train", 3, "north"), "DEBUG", 3, "north"),
    (DownloadEnded("train", 3, "north", 4_000_000), "DEBUG", 3, "north"),
    (UploadQueued("train", 3, "north"), "DEBUG", 3, "north"),
    (UploadBegan("train", 3, "north", 0), "DEBUG", 3, "north"),
    (UploadEnded("train", 3, "north", 4_000_000), "DEBUG", 3, "north"),
    (UpdatesFolded("train", 3, ("north",)), "DEBUG", 3, ""),
    (TaskAnswered("train", "north", 3, 17, 2.0, 4_000_000, "0" * 64), "DEBUG", 3, "north"),
    (AnswerRefused("train", "north", 3, 17, "out-of-bounds", HOSTILE), "DEBUG", 3, "north"),
    (ClientFailed("train", "north", HOSTILE), "WARNING", 3, "north"),
    (InvalidMetrics("train", "north", {HOSTILE: HOSTILE}), "WARNING", 3, "north"),
    (WaitBegan(), "DEBUG", 0, ""),
    (WaitEnded(), "DEBUG", 0, ""),
    (RuleBegan("north"), "DEBUG", 0, "north"),
    (RuleEnded("north"), "DEBUG", 0, "north"),
    (WaitingForClients(1, 2, ("south",), None), "INFO", 0, ""),
    (TaskRetried("train", 3, 1, 2, ("north",), 1, 10, 2.0), "WARNING", 3, ""),
    (RoundSkipped("train", 3, HOSTILE), "WARNING", 3, ""),
    (StoppedEarly(3, HOSTILE), "INFO", 3, ""),
    (NoBestModel(HOSTILE, (HOSTILE,)), "WARNING", 3, ""),
    (BytesTransferred(1_000_000, 2_000_000), "DEBUG", 0, ""),
    (ModelPublished(3, "model.safetensors", True, "0" * 64, 4_000_000, None), "DEBUG", 3, ""),
    (RoundFinished(RoundRecord(3, seconds={"round": 1.0}, train={HOSTILE: 1.0})), "INFO", 3, ""),
    (TaskProgress("north", "train", 3, 9, 1.0, 4.0), "DEBUG", 3, "north"),
]
"""An event of each type, its level, and the round and client that its line names. In this order, as in a run."""

OF_FEDERATIONS: list[tuple[Any, str, int, str]] = [
    (ClientJoined("north", 1), "INFO", 0, "north"),
    (ClientLeft("north", 0), "INFO", 0, "north"),
    (CallRefused("north", "0" * 64, "revoked", HOSTILE), "WARNING", 0, "north"),
    (JoinRefused("north", HOSTILE), "WARNING", 0, "north"),
    (ClientRevoked("north", "0" * 64, HOSTILE), "WARNING", 0, "north"),
    (JobRequested("submit", "digits-1", ALICE, "0" * 64), "INFO", 0, ""),
    (RequestRefused("abort", "digits-1", ALICE, "not-allowed", HOSTILE), "WARNING", 0, ""),
    (JobStarted("digits-1", is_continued=False), "INFO", 0, ""),
    (JobOver("digits-1", "done", ""), "INFO", 0, ""),
    (JobOver("digits-1", "failed", HOSTILE), "ERROR", 0, ""),
    (SiteRefused("digits-1", "north", HOSTILE), "WARNING", 0, "north"),
]


def written(line_format: str, lines: Mapping[type, EventLine], events: list[Any], job: str = "") -> list[str]:
    data: list[bytes] = []
    log = Log(line_format, data.append, job=job, level=logging.DEBUG)
    observe = EventLog(log, lines)
    for event in events:
        observe(event)
    log.close(20.0)
    return b"".join(data).decode().splitlines()


def test_the_tables_have_a_line_for_each_type_of_event() -> None:
    assert set(lines_of_run(CONTRACT)) == set(get_args(Event)) == {type(event) for event, *_ in OF_RUNS}
    assert set(FEDERATION_LINES) == {type(event) for event, *_ in OF_FEDERATIONS}


@pytest.mark.parametrize(
    ("lines", "cases", "job"), [(lines_of_run(CONTRACT), OF_RUNS, "job"), (FEDERATION_LINES, OF_FEDERATIONS, "")]
)
def test_each_event_is_one_line_of_bounded_text_that_names_job_round_and_client(
    lines: Mapping[type, EventLine], cases: list[tuple[Any, str, int, str]], job: str
) -> None:
    told = written("text", lines, [event for event, *_ in cases], job)
    assert len(told) == len(cases)
    for line, (event, level, number, client) in zip(told, cases, strict=True):
        expected_job = job or getattr(event, "job", "")
        named = (("job", expected_job), ("round", number), ("client", client))
        assert line.endswith(f"Z {level}" + "".join(f" {key}={value}" for key, value in named if value) + "]"), line
        assert line.isprintable() and len(line) < 4_000


@pytest.mark.parametrize(
    ("lines", "cases", "job"), [(lines_of_run(CONTRACT), OF_RUNS, "job"), (FEDERATION_LINES, OF_FEDERATIONS, "")]
)
def test_each_event_is_one_object_of_json_with_its_keys_first(
    lines: Mapping[type, EventLine], cases: list[tuple[Any, str, int, str]], job: str
) -> None:
    told = written("json", lines, [event for event, *_ in cases], job)
    assert len(told) == len(cases)
    for line, (event, level, number, client) in zip(told, cases, strict=True):
        assert line.isprintable() and len(line) < 12_000
        found = json.loads(line)
        leading = ["time", "level", "event", "job"] + ["round"] * ("round" in found) + ["client"] * ("client" in found)
        assert list(found)[: len(leading) + 1] == [*leading, "message"]
        assert (found["level"], found["job"]) == (level, job or getattr(event, "job", ""))
        assert (found.get("round") or 0, found.get("client", "")) == (number, client)
        assert found["event"].replace("_", "") == type(event).__name__.lower()


def test_no_event_has_a_secret() -> None:
    types = {*get_args(Event), *FEDERATION_LINES, Caller, RoundRecord}
    names = {(each.__name__, field.name) for each in types for field in dataclasses.fields(each)}
    assert not [name for name in names if any(word in name[1] for word in ("secret", "token", "key", "pem"))]


def test_events_below_the_level_cost_no_text() -> None:
    asked: list[Any] = []

    def text(event: Any) -> str:
        asked.append(event)
        return ""

    log = Log("text", lambda _: None)
    observe = EventLog(log, {TaskSent: EventLine(lambda _: logging.DEBUG, text)})
    observe(TaskSent("train", 3, 1, ("north",), "m1"))
    log.close(20.0)
    assert not asked


def test_bytes_are_summed_up_to_one_line_a_second() -> None:
    data, now = list[bytes](), [100.0]
    log = Log("json", data.append, level=logging.DEBUG)
    observe = EventLog(log, lines_of_run(CONTRACT), lambda: now[0])
    for tenth in range(21):
        now[0] = 100 + tenth / 10
        observe(BytesTransferred(1, 2))
    log.close(20.0)
    told = [json.loads(line) for line in data]
    assert [(each["sent"], each["received"]) for each in told] == [(1, 2), (10, 20), (10, 20)]


def test_a_failure_has_the_round_of_its_own_task() -> None:
    sent = [TaskSent(task, number, 1, ("north",), "m1") for task, number in (("train", 3), ("validate", 2))]
    events = [*sent, ClientFailed("train", "north", "it is tired")]
    told = [json.loads(line) for line in written("json", lines_of_run(CONTRACT), events)]
    assert told[-1]["round"] == 3


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (RunContinued("r1", 1, 1), "going on with run r1: 1 of its 1 round is over"),
        (RunContinued("r1", 2, 9), "going on with run r1: 2 of its 9 rounds are over"),
        (HistoryRestored((RoundRecord(1),)), "the history has 1 round"),
        (TaskSent("train", 3, 1, ("a",), "m"), "round 3: train is sent to 1 client"),
        (TaskSent("train", 3, 2, ("a", "b"), "m"), "round 3: train is sent to 2 clients"),
        (UpdatesFolded("train", 3, ("a",)), "round 3: in the total, 1 update: a"),
        (TaskRetried("train", 3, 0, 1, ("a",), 1, 1, 2.0), "round 3: train has 0 of 1 answer that it needs"),
        (RoundFinished(RoundRecord(1, ("a",), seconds={"round": 0.5})), "round 1/9: 0 of 1 client, no metrics"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_one_thing_is_in_the_singular(event: Any, text: str) -> None:
    assert lines_of_run(CONTRACT)[type(event)].text(event).startswith(text)
