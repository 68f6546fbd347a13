"""A server's log: one line for each event, whatever clients say, in text or JSON; and nobody waits for its reader."""

import json
import re
import threading
import time

import pytest

from flcore.cli.log import MOST_WAITING, Log, log_events
from flcore.job.parsing import parse_contract
from flcore.server.events import (
    AskingAgain,
    Departed,
    Event,
    Failed,
    Joined,
    Moved,
    NoBest,
    OddMetrics,
    RoundDone,
    Skipped,
    TurnedAway,
    Waiting,
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
    Joined("a", 1),
    Departed("a", 0),
    TurnedAway("b", FORGED),
    Failed("train", "c", FORGED),
    OddMetrics("train", "c", {"loss": "it is nan"}),
    Waiting(1, 2, tuple(f"c{number}" for number in range(30)), 60.0),
    AskingAgain("train", 3, 1, 2, ("b",), 1, 10, 2.0),
    Skipped("train", 3, "1 of 2 answers are in"),
    NoBest("accuracy", ("loss",)),
    RoundDone(RoundRecord(3, seconds={"round": 1.0}, train={f"m{n}": 1.0 for n in range(200)})),
]


def written(form: str, events: list[Event]) -> list[str]:
    data: list[bytes] = []
    log = Log(form, data.append)
    observe = log_events(log, CONTRACT)
    for event in events:
        observe(event)
    log.close(20.0)
    return b"".join(data).decode().splitlines()


def test_each_event_is_one_line_with_its_time_whatever_clients_said() -> None:
    lines = written("text", [*EVENTS, Moved(1, 1)])
    assert len(lines) == len(EVENTS)
    for line in lines:
        assert line.isprintable() and len(line) < 4_000
        assert re.search(r" \[20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\]$", line)
    assert [line for line in lines if line.startswith("round 9/9")] == []
    assert lines[5].startswith("waiting for clients, for 60 s at most: 1 of 2 are connected; not there: c0, c1,")
    assert "c9, 20 more" in lines[5]
    assert lines[6].startswith(
        "round 3: train has 1 of 2 answers that it needs; asking b again in 2 s, attempt 1 of 10"
    )


def test_json_has_the_same_events_with_all_their_fields() -> None:
    told = [json.loads(line) for line in written("json", EVENTS)]
    assert [each["event"] for each in told] == [
        "joined",
        "departed",
        "turned_away",
        "failed",
        "odd_metrics",
        "waiting",
        "asking_again",
        "skipped",
        "no_best",
        "round_done",
    ]
    assert told[3]["reason"] == FORGED and told[9]["record"]["round"] == 3 and told[0]["time"].endswith("Z")


def test_a_log_that_nobody_reads_stops_nobody_and_says_what_it_left_out() -> None:
    may_read, data = threading.Event(), list[bytes]()

    def blocked(line: bytes) -> None:
        may_read.wait(30)
        data.append(line)

    log = Log("text", blocked)
    began = time.monotonic()
    for number in range(MOST_WAITING + 500):
        log.say(f"line {number}")
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
    log.say("one")
    log.close(1.0)
    log.say("two")


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_many_threads_do_not_mix(form: str) -> None:
    data: list[bytes] = []
    log = Log(form, data.append)

    def talk() -> None:
        for _ in range(100):
            log.say("x" * 100)

    threads = [threading.Thread(target=talk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close(20.0)
    assert len(data) == 800 and all(line.count(b"\n") == 1 for line in data)
