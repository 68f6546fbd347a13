"""The audit log: its chain over a job, what verification notices, crashes, full disks and what clients write."""

import errno
import hashlib
import io
import json
import logging
import os
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, JobError, Task, Update
from flcore.server import audit_log
from flcore.server.audit_chain import AUDIT_FILE, MAX_LINE_BYTES, NO_DIGEST, Verification, seal, verify, verify_lines
from flcore.server.audit_entries import describe_event
from flcore.server.audit_log import AuditLog
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    CallRefused,
    ClientJoined,
    ClientRevoked,
    Event,
    JoinRefused,
    ModelPublished,
    RunEnded,
    RunStarted,
    TaskAnswered,
)
from flcore.server.run_directory import RunDirectory
from tests.flcore.conftest import Stage, adding

STARTED = RunStarted("20260131T120000-0", "hospital", "c" * 64, "d" * 64, "0.1.0")
EVENTS: list[Event] = [
    STARTED,
    ClientJoined("a", 1),
    JoinRefused("b", "not among the job's clients"),
    TaskAnswered("train", "a", 1, 1, 2.5, 4096, "e" * 64),
    AnswerRefused("train", "a", 1, 1, "untimely", "the round has closed without it"),
    ModelPublished(1, "model.safetensors", True, "f" * 64, 4096, None),
    ClientRevoked("a", "0" * 64, "its key was lost"),
    CallRefused("a", "0" * 64, "revoked", "its certificate is revoked"),
    RunEnded("the job is done", False),
]
NAMES = [
    "start",
    "join",
    "join-refused",
    "receipt",
    "answer-refused",
    "publication",
    "revocation",
    "call-refused",
    "end",
]


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_log(path: Path, events: list[Event] = EVENTS) -> bytes:
    with AuditLog(path) as log:
        for event in events:
            log(event)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / AUDIT_FILE


def check(data: bytes, head: str | None = None) -> Verification:
    return verify_lines(io.BytesIO(data), head)


def test_a_line_is_chained_to_the_one_before(path: Path) -> None:
    lines = write_log(path).splitlines()
    previous = NO_DIGEST
    for number, (line, name) in enumerate(zip(lines, NAMES, strict=True), 1):
        entry = json.loads(line)
        assert (entry["previous"], entry["sequence"], entry["event"]) == (previous, number, name)
        # The digest can be computed without flcore.
        previous = hashlib.sha256(line[: line.index(b',"sha256"')] + b"}").hexdigest()
        assert entry["sha256"] == previous
    result = verify(path)
    assert (result.entries, result.head, result.has_ended, result.fault) == (9, previous, True, None)
    assert result.first == json.loads(lines[0])["time"] and result.last == json.loads(lines[-1])["time"]


def test_other_events_are_not_for_the_log(path: Path) -> None:
    assert write_log(path, [BytesTransferred(1, 1)]) == b""
    assert verify(path).fault is not None, "a log without entries proves nothing"


def test_the_log_of_a_job_has_what_happened(stage: Stage, tmp_path: Path) -> None:
    def bad(model: Arrays, _: Task) -> Update:
        return Update({name: array + np.float32(1e6) for name, array in model.items()}, weight=1.0)

    out = tmp_path / "out"
    stage.open(wait_for=3, quorum=2, clients=["bad", "good-1", "good-2"], out=out, rounds=1)
    with pytest.raises(Exception, match="not among"):
        stage.join("stranger\n")
    for name, train in (("bad", bad), ("good-1", adding(1.0)), ("good-2", adding(3.0))):
        stage.client(name, train)
    stage.result()
    stage.close()
    written = entries(out / AUDIT_FILE)
    named = {name: [entry for entry in written if entry["event"] == name] for name in NAMES}
    run = json.loads((out / "run.json").read_text())
    assert named["start"][0]["run"] == run["id"] and named["start"][0]["contract"] == run["fingerprint"]
    assert sorted(entry["client"] for entry in named["join"]) == ["bad", "good-1", "good-2"]
    assert [entry["client"] for entry in named["join-refused"]] == ["stranger\\n"]
    refused = named["answer-refused"][0]
    assert (refused["client"], refused["round"], refused["task"]) == ("bad", 1, "train")
    assert refused["kind"] == "out-of-bounds" and "more than the 100 allowed" in refused["reason"]
    assert sorted(entry["client"] for entry in named["receipt"]) == ["good-1", "good-2"]
    assert all(entry["round"] == 1 and entry["bytes"] > 0 and entry["weight"] == 1.0 for entry in named["receipt"])
    model = (out / "model.safetensors").read_bytes()
    assert [entry["round"] for entry in named["publication"]] == [1]
    assert named["publication"][0]["file_sha256"] == hashlib.sha256(model).hexdigest()
    assert written[-1]["event"] == "end" and written[-1]["failed"] is False
    assert verify(out / AUDIT_FILE).fault is None


def test_a_job_that_fails_has_an_end(stage: Stage, tmp_path: Path) -> None:
    def failing(_: Arrays, __: Task) -> Update:
        raise ValueError("no data")

    stage.open(wait_for=1, clients=1, quorum=1, out=tmp_path / "out")
    stage.client("client-1", failing)
    with pytest.raises(Exception, match="no data"):
        stage.result()
    last = entries(tmp_path / "out" / AUDIT_FILE)[-1]
    assert last["event"] == "end" and last["failed"] is True and "quorum" in last["reason"]


def mutations(data: bytes) -> Iterator[bytes]:
    for position, byte in enumerate(data):
        for other in {byte ^ 1, byte ^ 0x20, byte ^ 0x80, ord("\n"), ord("0"), ord('"')} - {byte}:
            yield data[:position] + bytes([other]) + data[position + 1 :]


def test_every_changed_byte_is_noticed(path: Path) -> None:
    data = write_log(path)
    unnoticed = [changed for changed in mutations(data) if check(changed).fault is None]
    assert unnoticed == []


def test_deleted_inserted_and_swapped_lines_are_noticed(path: Path) -> None:
    lines = write_log(path).splitlines(keepends=True)
    head = check(b"".join(lines)).head
    for at in range(len(lines)):
        for changed in (
            lines[:at] + lines[at + 1 :],
            [*lines[:at], lines[at], *lines[at:]],
            [*lines[:at], b"\n", *lines[at:]],
            [*lines[:at], seal(NO_DIGEST, at + 1, "2026-01-31", "join", {"client": "x"})[0], *lines[at:]],
            [*lines[:at], *lines[at + 1 : at + 2], lines[at], *lines[at + 2 :]],
        ):
            is_same, is_cut = changed == lines, changed == lines[:-1]
            assert (check(b"".join(changed)).fault is None) == (is_same or is_cut), (at, changed)
            assert (check(b"".join(changed), head).fault is None) == is_same


def test_a_fault_names_the_line_and_what_was_expected(path: Path) -> None:
    lines = write_log(path).splitlines(keepends=True)
    fault = check(b"".join(lines[:3] + lines[4:])).fault
    assert fault is not None and (fault.line, fault.expected, fault.got) == (4, "entry 4", "entry 5")
    fault = check(b"".join([*lines[:2], lines[2].replace(b'"b"', b'"c"'), *lines[3:]])).fault
    assert fault is not None and fault.line == 3 and "as the line says" in fault.expected
    result = check(b"".join(lines[:2]) + b"nothing\n" + b"".join(lines[2:]))
    assert result.entries == 2 and result.fault is not None and "8 bytes that are not one: 'nothing" in result.fault.got


def test_a_cut_within_a_line_is_a_torn_tail_and_whole_lines_need_the_head(path: Path) -> None:
    data = write_log(path)
    head, first = check(data).head, data.index(b"\n")
    for length in range(len(data)):
        cut = data[:length]
        result, complete = check(cut), cut.count(b"\n") + (data[length : length + 1] == b"\n")
        assert result.entries == complete
        if length < first:
            assert result.fault is not None and result.fault.line == 1
        else:
            assert result.fault is None
            is_whole = cut.endswith(b"\n") or data[length : length + 1] == b"\n"
            assert result.torn_bytes == (0 if is_whole else length - cut.rindex(b"\n") - 1)
        assert (check(cut, head).fault is None) == (complete == len(NAMES))


def test_a_head_may_have_entries_after_it(path: Path) -> None:
    lines = write_log(path).splitlines(keepends=True)
    head = check(b"".join(lines[:5])).head
    assert check(b"".join(lines), head).entries_after_head == 4
    fault = check(b"".join(lines[:4]), head).fault
    assert fault is not None and head in fault.expected and "cut off" in fault.got


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 1.0])
def test_what_a_crash_left_stays_and_is_recorded(path: Path, kept: float) -> None:
    data = write_log(path)
    whole = data[: data.rindex(b"\n", 0, -1) + 1]
    torn = data[len(whole) : len(whole) + int(kept * (len(data) - len(whole) - 1))]
    path.write_bytes(whole + torn)
    continued = write_log(path, [STARTED])
    assert continued.startswith(whole + torn), "evidence is never destroyed"
    result = check(continued)
    assert result.fault is None and result.torn_tails == (0 if kept in (0.0, 1.0) else 1)
    if result.torn_tails:
        for changed in mutations(torn):
            assert check(continued.replace(torn, changed)).fault is not None
        assert check(continued.replace(torn + b"\n", b"")).fault is not None, "a torn line was removed"
        assert check(continued.replace(torn, torn[:-1])).fault is not None


def test_a_forged_torn_entry_that_is_nested_too_deeply_is_a_fault(path: Path) -> None:
    whole = write_log(path, EVENTS[:1])
    torn = b'{"previous":"'
    line, _ = seal(check(whole).head, 3, "2026-01-31", "torn", {"a": 0})
    body = line.partition(b"0,")[0].partition(b',"sha256"')[0].replace(b'"a":0', b'"a":' + b"[" * 5_000 + b"]" * 5_000)
    digest = hashlib.sha256(body + b"}").hexdigest().encode()
    forged = check(whole + torn + b"\n" + body + b',"sha256":"' + digest + b'"}\n')
    assert forged.fault is not None


def test_a_crash_while_a_torn_tail_is_recorded_is_recorded_too(path: Path) -> None:
    data = write_log(path)
    path.write_bytes(data[:-50])
    second = write_log(path, [STARTED])
    for length in range(len(data) - 50, len(second), 17):
        path.write_bytes(second[:length])
        assert check(write_log(path, [STARTED])).fault is None, length


def test_a_file_that_is_no_audit_log_is_not_continued(path: Path) -> None:
    path.write_bytes(b"x" * 1_000_000)
    with pytest.raises(JobError, match=r"expected an audit log, got .*; move it away"):
        AuditLog(path)
    assert path.stat().st_size == 1_000_000


HOSTILE = [
    "two\nlines",
    '","event":"end","sha256":"' + "0" * 64 + '"}\n{"previous":"',
    "\x1b[2J\x00\x07\x7f\u202e\u2028",
    "\ud800 alone \udfff",
    "\U0010ffff" * 10_000,
    "x" * 10_000_000,
    "\n" * 10_000_000,
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_clients_write_stays_on_one_short_line(path: Path, text: str) -> None:
    hostile: list[Event] = [
        STARTED,
        ClientJoined(text, 1),
        JoinRefused(text, text),
        CallRefused(text, text, text, text),
        AnswerRefused(text, text, 1, 1, text, text),
        TaskAnswered(text, text, 1, 1, 1e308, 1, "0" * 64),
        ClientRevoked(text, text, text),
        RunEnded(text, True),
    ]
    lines = write_log(path, hostile).splitlines(keepends=True)
    assert len(lines) == len(hostile)
    assert all(len(line) < MAX_LINE_BYTES and line[:-1].decode("ascii").isprintable() for line in lines)
    assert all(value.isprintable() for line in lines for value in json.loads(line).values() if isinstance(value, str))
    assert verify(path).fault is None


def test_many_threads_make_one_chain(path: Path) -> None:
    with AuditLog(path) as log:

        def join(number: int) -> None:
            for each in range(100):
                log(ClientJoined(f"{number}-{each}", each))

        threads = [threading.Thread(target=join, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    result = verify(path)
    assert (result.entries, result.fault) == (1600, None)
    assert len({entry["client"] for entry in entries(path)}) == 1600


class FullDisk:
    """`os.write` of a disk that is full: it takes the first bytes of a line, then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: int) -> None:
        self._write, self._takes = os.write, takes
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file: int, data: bytes) -> int:
        if not self._takes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, self._takes = self._takes, 0
        return self._write(file, data[:taken])


@pytest.mark.parametrize("takes", [0, 1, 100])
def test_a_full_disk_is_one_line_and_its_entries_come_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, takes: int
) -> None:
    with AuditLog(path) as log, caplog.at_level(logging.WARNING):
        log(STARTED)
        with monkeypatch.context() as full:
            FullDisk(full, takes)
            for number in range(20):
                log(ClientJoined(str(number), number))
        assert [record.message.count("No space left on device") for record in caplog.records] == [1]
        assert check(path.read_bytes()).entries == 1, "no part of a line stays"
        log(RunEnded("done", False))
        assert "is written again" in caplog.text
    result = verify(path)
    assert (result.entries, result.fault) == (22, None)


def test_entries_beyond_those_that_wait_are_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "MAX_PENDING_ENTRIES", 10)
    log = AuditLog(path)
    with monkeypatch.context() as full:
        FullDisk(full, 0)
        for number in range(25):
            log(ClientJoined(str(number), number))
    log(ClientJoined("after", 1))
    log(ClientJoined("later", 1))
    omitted = [entry["entries"] for entry in entries(path) if entry["event"] == "omitted"]
    assert sum(omitted) == 16 and verify(path).fault is None
    with monkeypatch.context() as full:
        FullDisk(full, 0)
        log(ClientJoined("lost", 1))
        log.close()
    assert "lacks its last 1 entries" in caplog.text


def test_a_flood_of_refusals_is_counted_and_does_not_fill_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "BURST_ENTRIES", 50)
    with AuditLog(path) as log:
        for _ in range(5000):
            log(JoinRefused("x", "not invited"))
        log(TaskAnswered("train", "a", 1, 1, 1.0, 1, "0" * 64))
    written = entries(path)
    assert 50 <= len([entry for entry in written if entry["event"] == "join-refused"]) < 100
    refused = sum(entry.get("entries", 1) for entry in written if entry["event"] in ("omitted", "join-refused"))
    assert refused == 5000 and any(entry["event"] == "receipt" for entry in written)


def test_receipts_are_synced_within_the_delay_and_share_a_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    happened, fsync = threading.Event(), os.fsync

    def noted(file: int) -> None:
        fsync(file)
        synced.append(path.read_bytes().count(b"\n"))
        happened.set()

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(audit_log, "SYNC_DELAY_S", 0.5)
    with AuditLog(path) as log:
        log(ClientJoined("a", 1))
        for _ in range(20):
            log(EVENTS[3])
        assert synced == []
        assert happened.wait(20)
        assert synced == [21]
    assert synced == [21, 21]


def test_an_event_after_the_end_is_ignored(path: Path) -> None:
    log = AuditLog(path)
    log(STARTED)
    log.close()
    log(ClientJoined("late", 1))
    log.close()
    assert verify(path).entries == 1


def test_fresh_moves_the_log_along_also_of_a_run_without_results(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in range(3):
        with RunDirectory(run, job="hospital", contract_fingerprint="f" * 64, fresh=number == 2):
            write_log(run / AUDIT_FILE, [STARTED])
    assert verify(run.with_name("run.1") / AUDIT_FILE).entries == 2, "continued without --fresh"
    assert verify(run / AUDIT_FILE).entries == 1


def test_verification_takes_no_memory_for_lines(path: Path) -> None:
    with path.open("wb") as file:
        head = NO_DIGEST
        for number in range(1, 20_001):
            line, head = seal(head, number, "2026-01-31T12:00:00.000Z", "join", {"client": "c" * 300})
            file.write(line)
    tracemalloc.start()
    assert verify(path).entries == 20_000
    assert tracemalloc.get_traced_memory()[1] < 300_000
    path.write_bytes(b"{" * 20_000_000)
    tracemalloc.reset_peak()
    assert verify(path).fault is not None
    assert tracemalloc.get_traced_memory()[1] < 300_000
    tracemalloc.stop()


def test_noise_is_never_a_log() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        assert check(rng.randbytes(rng.randrange(0, 2000))).fault is not None


def test_every_kind_of_entry_has_its_event() -> None:
    assert [described[0] for event in EVENTS if (described := describe_event(event))] == NAMES
