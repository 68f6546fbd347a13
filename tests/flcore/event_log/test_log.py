"""A server's log: one line for each event, whatever clients say, in text or JSON; and nobody waits for its reader."""

import json
import re
import threading
import time

import pytest

from flcore.event_log.log import MAX_QUEUED_LINES, Log, log_events
from flcore.job.parsing import parse_contract
from flcore.server.events import (
    BytesTransferred,
    CallRefused,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    Event,
    InvalidMetrics,
    JoinRefused,
    NoBestModel,
    RoundFinished,
    RoundSkipped,
    StoppedEarly,
    TaskRetried,
    WaitingForClients,
)
from flcore.server.history import RoundRecord

CONTRACT = parse_contract(
    {
        "name": "job",
        "clients": 3,
        "server": {"model": "code.py:model", "rounds": 9},
        "client": {"executor": "code.py"},
        "tasks": {"train": {"returns": "weights"}},
    },
    "here",
)
FORGED = "bad\nround 9/9: 3 of 3 clients\x1b[2J\x1b]0;owned\x07"
EVENTS: list[Event] = [
    ClientJoined("a", 1),
    ClientLeft("a", 0),
    JoinRefused("b", FORGED),
    ClientFailed("train", "c", FORGED),
    InvalidMetrics("train", "c", {"loss": "it is nan"}),
    WaitingForClients(1, 2, tuple(f"c{number}" for number in range(30)), 60.0),
    TaskRetried("train", 3, 1, 2, ("b",), 1, 10, 2.0),
    RoundSkipped("train", 3, "1 of 2 answers are in"),
    NoBestModel("accuracy", ("loss",)),
    RoundFinished(RoundRecord(3, seconds={"round": 1.0}, train={f"m{n}": 1.0 for n in range(200)})),
    CallRefused("", "0" * 64, "unmapped", FORGED),
    StoppedEarly(5, "loss has not improved for 3 rounds; the best is 0.25"),
]


def written(line_format: str, events: list[Event]) -> list[str]:
    data: list[bytes] = []
    log = Log(line_format, data.append)
    observe = log_events(log, CONTRACT)
    for event in events:
        observe(event)
    log.close(20.0)
    return b"".join(data).decode().splitlines()


def test_each_event_is_one_line_with_its_time_whatever_clients_said() -> None:
    lines = written("text", [*EVENTS, BytesTransferred(1, 1)])
    assert len(lines) == len(EVENTS)
    for line in lines:
        assert line.isprintable() and len(line) < 4_000
        assert re.search(r" \[20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO|WARNING)( \w+=\S+)*\]$", line)
    assert [line for line in lines if line.startswith("round 9/9")] == []
    assert lines[5].startswith("waiting for clients, for 60 s at most: 1 of 2 are connected; not there: c0, c1,")
    assert "c9, 20 more" in lines[5]
    assert lines[6].startswith("round 3: train has 1 of 2 answers that it needs; asking b again in 2 s, retry 1 of 10")
    assert lines[11].startswith(
        "the run ends early, after round 5: loss has not improved for 3 rounds; the best is 0.25"
    )


def test_a_round_without_training_has_its_metrics_and_no_count_of_clients() -> None:
    lines = written(
        "plain",
        [
            RoundFinished(RoundRecord(1, seconds={"round": 0.5}, validate={"accuracy": 0.75})),
            RoundFinished(RoundRecord(2, ("a", "b"), seconds={"round": 0.5})),
        ],
    )
    assert lines == [
        "round 1/9: accuracy 0.75, 0 B, 0.50 s",
        "round 2/9: 0 of 2 clients, no metrics, 0 B, 0.50 s",
    ]


def test_json_has_the_same_events_with_all_their_fields() -> None:
    told = [json.loads(line) for line in written("json", EVENTS)]
    assert [each["event"] for each in told] == [
        "client_joined",
        "client_left",
        "join_refused",
        "client_failed",
        "invalid_metrics",
        "waiting_for_clients",
        "task_retried",
        "round_skipped",
        "no_best_model",
        "round_finished",
        "call_refused",
        "stopped_early",
    ]
    assert told[3]["reason"] == FORGED and told[9]["record"]["round"] == 3 and told[0]["time"].endswith("Z")


def test_numbers_that_json_does_not_have_are_text() -> None:
    lines: list[bytes] = []
    with Log("json", lines.append) as log:
        log.write_line("a line", values={"loss": float("nan"), "rates": [float("inf"), 1.5]}, at=-float("inf"))
    line = json.loads(b"".join(lines), parse_constant=lambda name: pytest.fail(name))
    assert (line["values"], line["at"]) == ({"loss": "nan", "rates": ["inf", 1.5]}, "-inf")


def test_a_log_that_nobody_reads_stops_nobody_and_says_what_it_left_out() -> None:
    may_read, data = threading.Event(), list[bytes]()

    def blocked(line: bytes) -> None:
        may_read.wait(30)
        data.append(line)

    log = Log("text", blocked)
    began = time.monotonic()
    for number in range(MAX_QUEUED_LINES + 500):
        log.write_line(f"line {number}")
    log.close(0.1)
    assert time.monotonic() - began < 5
    may_read.set()
    log.close(20.0)
    (told,) = re.findall(rb"(\d+) lines were left out: nobody read the log", b"".join(data))
    assert 498 <= int(told) <= 500


def test_a_log_that_is_closed_stops_nobody() -> None:
    def broken(_: bytes) -> None:
        raise BrokenPipeError

    log = Log("text", broken)
    log.write_line("one")
    log.close(1.0)
    log.write_line("two")


@pytest.mark.parametrize("line_format", ["text", "json"])
def test_lines_of_many_threads_do_not_mix(line_format: str) -> None:
    data: list[bytes] = []
    log = Log(line_format, data.append)

    def talk() -> None:
        for _ in range(100):
            log.write_line("x" * 100)

    threads = [threading.Thread(target=talk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(20.0)
    assert len(data) == 800 and all(line.count(b"\n") == 1 for line in data)


def test_a_session_of_an_earlier_server_is_no_attack() -> None:
    unknown = "the server does not know this session: join again"
    events: list[Event] = [
        CallRefused("north", "0" * 64, "unknown-session", unknown),
        CallRefused("", "", "unknown-session", unknown),
        CallRefused("north", "0" * 64, "revoked", "its certificate is revoked"),
    ]
    lines = [line.rpartition("  [")[0] or line for line in written("text", events)]
    assert len(lines) == 2
    assert lines[0].startswith("north has no session here, as after a restart of the server; told to join again")
    assert lines[1].startswith("refused a call of north: its certificate is revoked")
