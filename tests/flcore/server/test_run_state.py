"""The record of a run: what it has, it has after every kind of end."""

import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import xxhash

from flcore.errors import RecordError
from flcore.server.history import Participation, RoundRecord
from flcore.server.record_inspection import inspect_record
from flcore.server.run_state import RecordedAnswer, RecordedCall, RecordedReceipt, RunState

TRAIN = RecordedCall(1, 1, "train", {"clients": ["a", "b"], "task": "train"}, {"is_skipped": False})


def answer(client: str, directory: str = "") -> RecordedAnswer:
    return RecordedAnswer(client, Participation(2.0, {"loss": 0.25}, 4096, 1.5), {"f1": "odd"}, directory)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


def test_what_is_recorded_is_there_when_it_is_opened_again(path: Path) -> None:
    record = RoundRecord(1, ("a", "b"), {"a": Participation(2.0, {"loss": 0.25}, 4096, 1.5)}, {"train": {"b": "lost"}})
    with RunState(path) as state:
        assert state.is_empty()
        state.add_facts({"id": "run-1", "contract": "{}"})
        assert state.is_empty(), "there is nothing to go on with"
        state.add_answer(1, answer("b", "1-b"))
        state.add_answer(1, answer("a"))
        state.end_call(TRAIN)
        state.end_round(record, 1, {"best": b"1", "old": b"2"})
        state.end_round(replace(record, round=2), 1, {"best": b"3"})
        state.end_call(RecordedCall(2, 2, "sample", {}, {"clients": []}))
    with RunState(path) as state:
        assert state.facts() == {"id": "run-1", "contract": "{}"}
        assert state.answers(1) == [answer("b", "1-b"), answer("a")]
        assert state.calls() == [TRAIN, RecordedCall(2, 2, "sample", {}, {"clients": []})]
        assert state.rounds() == [record, replace(record, round=2)]
        assert state.workflow_values() == {"best": b"3"}
        assert not state.is_empty()


def test_a_run_can_go_on_until_it_has_ended(path: Path) -> None:
    assert not inspect_record(path).can_go_on and not path.exists()
    with RunState(path) as state:
        state.add_facts({"id": "run-1"})
    assert not inspect_record(path).can_go_on, "nothing has happened in it"
    with RunState(path) as state:
        state.end_call(TRAIN)
    found = inspect_record(path)
    assert found.can_go_on and found.run_id == "run-1"
    with RunState(path) as state:
        state.add_facts({"ended": "done"})
    assert inspect_record(path).has_ended and not inspect_record(path).can_go_on


def test_a_copy_taken_at_any_time_has_each_answer_that_was_recorded(path: Path, tmp_path: Path) -> None:
    with RunState(path) as state:
        for number in range(20):
            state.add_answer(1, answer(f"client-{number}"))
            copy = tmp_path / f"copy-{number}"
            copy.mkdir()
            for file in tmp_path.glob("state.sqlite*"):  # as a killed process leaves them
                if not file.name.endswith("-shm"):
                    shutil.copy(file, copy)
            with RunState(copy / path.name) as found:
                assert [each.client for each in found.answers(1)] == [f"client-{n}" for n in range(number + 1)]


def test_a_client_has_one_answer_to_a_call(path: Path) -> None:
    with RunState(path) as state:
        state.add_answer(1, answer("a"))
        with pytest.raises(RecordError, match="UNIQUE"):
            state.add_answer(1, answer("a"))
        state.remove_answer(1, "a")
        state.add_answer(1, answer("a", "again"))
        assert [each.directory for each in state.answers(1)] == ["again"]


def test_many_threads_record_answers_at_once(path: Path) -> None:
    with RunState(path) as state:
        threads = [
            threading.Thread(target=state.add_answer, args=(1, answer(f"client-{number}"))) for number in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(state.answers(1)) == 16


def test_a_record_in_another_format_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(RecordError, match="format 2, got format 9"):
        RunState(path)


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"state\.sqlite"):
        RunState(path)


def test_a_damaged_record_is_refused_when_it_is_opened(path: Path) -> None:
    with RunState(path) as state:
        state.end_call(TRAIN)
    with path.open("r+b") as file:
        file.seek(20)  # in the header: the bytes that each page leaves free
        file.write(b"x")
    with pytest.raises(RecordError, match=r"state\.sqlite.*(damaged|malformed|not a database)"):
        RunState(path)


def test_a_record_that_another_program_has_open_is_told_with_advice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.1))
    with RunState(path), pytest.raises(RecordError, match="database is locked; another program has the file open"):
        RunState(path)


def test_nan_is_read_again(path: Path) -> None:
    with RunState(path) as state:
        state.end_call(RecordedCall(1, 1, "publish", {"loss": float("nan")}, {}))
        assert repr(state.calls()[0].arguments) == "{'loss': nan}"


def test_the_last_receipt_of_each_client_is_on_record(path: Path) -> None:
    with RunState(path) as state:
        for call in (1, 2):
            state.add_answer(call, answer("a"), RecordedReceipt(7 + call, b"token", "key"))
        state.add_answer(1, answer("b"))
        state.end_round(RoundRecord(1), 2, {}, released=[1, 2])
    with RunState(path) as state:
        assert state.receipts() == {"a": RecordedReceipt(9, b"token", "key")}
        assert state.answers(1) == state.answers(2) == []


def test_a_record_is_its_owners_alone(path: Path) -> None:
    with RunState(path) as state:
        state.add_facts({"token_key": "secret"})
        assert [each.stat().st_mode & 0o777 for each in path.parent.glob("state.sqlite*")] == [0o600] * 2


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A function after which SIGTERM, which raises `SystemExit`, comes within the checksum of this number from now."""
    left, real = 0, xxhash.xxh3_64

    def end(*_: object) -> None:
        raise SystemExit(143)

    def xxh3_64() -> xxhash.xxh3_64:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real()

    def interrupt(checksum: int) -> None:
        nonlocal left
        left = checksum

    monkeypatch.setattr(xxhash, "xxh3_64", xxh3_64)
    before = signal.signal(signal.SIGTERM, end)
    yield interrupt
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("checksum", range(1, 5))
def test_a_signal_within_a_change_ends_the_process_and_is_no_error_of_the_record(
    path: Path, interrupted: Callable[[int], None], checksum: int
) -> None:
    record = RoundRecord(1)
    with RunState(path) as state:
        state.end_call(replace(TRAIN, record="{}"))
        interrupted(checksum)
        with pytest.raises(SystemExit):  # at the round, its call, the value, and the count of the changes
            state.end_round(record, 1, {"best": b"1"})
        assert not state.rounds() and not state.workflow_values() and state.calls()[0].record == "{}"
        state.end_round(record, 1, {"best": b"1"})
    interrupted(checksum)
    with pytest.raises(SystemExit):  # the record is checked when it is opened
        RunState(path)
    interrupted(0)
    with RunState(path) as state:
        assert state.rounds() == [record] and state.calls()[0].record is None
