"""`status.json`: written by its own thread when something has changed, never in the way of a run, and read back."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flcore.errors import HistoryError, JobAborted
from flcore.server.events import ClientJoined, RunEnded, RunStarted
from flcore.server.history import RoundRecord
from flcore.server.run_directory import PARTIAL_STATUS_FILE, STATUS_FILE, RunDirectory
from flcore.server.run_summary import CRASHED
from flcore.status import JobStatus, StatusBoard, board_watch, parse_status, read_status, stored_status
from flcore.status import status_file as module
from flcore.status.status_file import keep_status_file
from tests.flcore.conftest import Stage, adding

STARTED = RunStarted("run-1", "job", "f", "c", "1")
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(board_watch, "MAX_SHARE", 1.0)


class Writes:
    """Counts the files that were written, and may be told to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.changed, self.error = 0, threading.Condition(), 0
        replace, write_text = Path.replace, Path.write_text

        def replacing(path: Path, target: Path) -> Path:
            result = replace(path, target)
            with self.changed:
                self.count += 1
                self.changed.notify_all()
            return result

        def writing(path: Path, text: str, **more: Any) -> int:
            if self.error and path.name == PARTIAL_STATUS_FILE:
                write_text(path, text[:10], **more)
                with self.changed:
                    self.count += 1
                    self.changed.notify_all()
                raise OSError(self.error, os.strerror(self.error))
            return write_text(path, text, **more)

        monkeypatch.setattr(Path, "replace", replacing)
        monkeypatch.setattr(Path, "write_text", writing)

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, TIMEOUT_S)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def read(directory: Path) -> JobStatus:
    return parse_status("job", (directory / STATUS_FILE).read_bytes())


def test_each_change_is_written_and_nothing_else(tmp_path: Path, writes: Writes) -> None:
    board = StatusBoard("job", 3)
    with keep_status_file(board, tmp_path):
        board.observe(STARTED)
        writes.wait_for(1)
        board.observe(ClientJoined("north", 1))
        writes.wait_for(2)
        assert read(tmp_path).connected == 1
        assert list(tmp_path.iterdir()) == [tmp_path / STATUS_FILE]
        before = writes.count
        assert (
            board.wait(board.version, timeout_s=0.2) and writes.count == before
        )  # nothing happens, nothing is written


def test_nothing_is_written_before_the_run_has_begun(tmp_path: Path, writes: Writes) -> None:
    with keep_status_file(StatusBoard("job", 3), tmp_path):
        pass
    assert writes.count == 0 and not list(tmp_path.iterdir())


def test_a_flood_of_events_is_a_few_writes(tmp_path: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 3600.0)
    board = StatusBoard("job", 3)
    with keep_status_file(board, tmp_path):
        board.observe(STARTED)
        writes.wait_for(1)
        for number in range(1_000):
            board.observe(ClientJoined("north", number))
    assert writes.count == 2  # the second one at the end, which waits for no interval
    assert read(tmp_path).connected == 999


def test_the_end_is_in_the_file_and_a_run_that_is_done_needs_none(tmp_path: Path) -> None:
    for end, is_kept in (("failed", True), ("aborted", True), ("interrupted", True), ("done", False)):
        board = StatusBoard("job", 3)
        with keep_status_file(board, tmp_path):
            board.observe(STARTED)
            board.observe(RunEnded("over", end != "done", end, "why"))  # type: ignore[arg-type]
        assert (tmp_path / STATUS_FILE).exists() == is_kept
        if is_kept:
            assert (read(tmp_path).state, read(tmp_path).reason) == (end, "why")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_file_alone(tmp_path: Path, writes: Writes) -> None:
    board = StatusBoard("job", 3)
    writes.error = errno.ENOSPC
    with keep_status_file(board, tmp_path):
        board.observe(STARTED)
        writes.wait_for(1)
    assert not list(tmp_path.iterdir())  # no part of a file holds space that the run needs
    with keep_status_file(board, tmp_path):
        board.observe(ClientJoined("north", 1))
        writes.wait_for(writes.count + 1)
        writes.error = 0
        board.observe(ClientJoined("south", 2))
        writes.wait_for(writes.count + 1)
        assert read(tmp_path).connected == 2


def test_at_the_end_the_last_file_makes_room_for_the_final_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, write_text = StatusBoard("job", 3), Path.write_text

    def writing(path: Path, text: str, **more: Any) -> int:
        if (path.parent / STATUS_FILE).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, text, **more)

    with keep_status_file(board, tmp_path):
        (tmp_path / STATUS_FILE).write_text("an earlier one")
        monkeypatch.setattr(Path, "write_text", writing)
        board.observe(STARTED)
        board.observe(RunEnded("over", True, "interrupted", "No space left on device"))
    assert read(tmp_path).state == "interrupted"


# The file of a real run.


@pytest.fixture
def opened(stage: Stage, tmp_path: Path) -> Iterator[tuple[Stage, Path, threading.Event]]:
    """A run whose second round waits for the test."""
    go_on, out = threading.Event(), tmp_path / "out"

    def train(model: Any, task: Any) -> Any:
        if task.round == 2:
            assert go_on.wait(TIMEOUT_S)
        return adding(1.0)(model, task)

    stage.open(wait_for=1, quorum=1, rounds=2, clients=["north"], out=out)
    stage.client("north", train)
    yield stage, out, go_on
    go_on.set()


def wait_for_status(directory: Path, is_right: Any) -> JobStatus:
    """Return the first status that is right. The file is another process's in life, so it is read again and again."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        if (directory / STATUS_FILE).exists() and is_right(status := read_status(directory)):
            return status
        threading.Event().wait(0.02)
    raise AssertionError(read_status(directory))


def test_a_run_is_read_while_it_runs_and_after_its_end(opened: tuple[Stage, Path, threading.Event]) -> None:
    stage, out, go_on = opened
    status = wait_for_status(out, lambda found: found.rounds_over == 1 and found.clients[0].phase == "training")
    assert (status.state, status.round, status.rounds, status.connected) == ("running", 2, 2, 1)
    assert status.resources is not None and status.resources.budget_bytes == 1 << 30
    assert status.resources.resident_bytes and status.resources.disk_free_bytes
    go_on.set()
    history = stage.result().history
    assert not (out / STATUS_FILE).exists()
    status = read_status(out)
    assert (status.state, status.rounds_over, status.rounds) == ("done", 2, 2)
    assert [each.updates for each in status.last_rounds] == [len(record.updates) for record in history] == [1, 1]


def test_an_aborted_run_says_so_in_its_directory(opened: tuple[Stage, Path, threading.Event]) -> None:
    stage, out, go_on = opened
    wait_for_status(out, lambda found: found.rounds_over == 1)
    stage.federation.state.stop_waiting("ended", JobAborted("the job was aborted by root"))
    go_on.set()
    with pytest.raises(JobAborted):
        stage.result()
    status = read_status(out)
    assert (status.state, status.reason) == ("aborted", "the job was aborted by root")
    assert [client.name for client in status.clients] == ["north"] and not status.clients[0].is_connected


def test_a_run_that_was_killed_has_stopped(opened: tuple[Stage, Path, threading.Event], tmp_path: Path) -> None:
    stage, out, go_on = opened
    wait_for_status(out, lambda found: found.rounds_over == 1 and found.connected == 1)
    copy = tmp_path / "copy"  # as a kill leaves the directory: the lock is not held, and no end is in any file
    copy.mkdir()
    for name in ("run.json", "history.jsonl", "audit.jsonl", STATUS_FILE):
        (copy / name).write_bytes((out / name).read_bytes())
    status = read_status(copy)
    assert (status.state, status.reason, status.connected) == ("stopped", CRASHED, 0)
    assert not any(client.is_connected for client in status.clients) and status.rounds_over == 1
    for lost in (b"", bytes(2_000)):  # as a power failure may leave it
        (copy / STATUS_FILE).write_bytes(lost)
        assert read_status(copy).state == "stopped" and read_status(copy).rounds_over == 1
    go_on.set()
    stage.result()


def test_a_watched_run_is_read_when_it_has_changed_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read_now = list[Path](), stored_status.read_status

    def read_counted(directory: Path) -> JobStatus:
        reads.append(directory)
        return read_now(directory)

    monkeypatch.setattr(stored_status, "read_status", read_counted)
    board, nothing = StatusBoard("hospital", 3), lambda: None
    with ExitStack() as stack:
        run = stack.enter_context(RunDirectory(tmp_path, job="hospital", contract_fingerprint="f" * 64))
        board.observe(RunStarted(run.id, "hospital", "f", "c", "1"))

        def write() -> None:
            module._update(board, tmp_path / STATUS_FILE)

        def join() -> None:
            board.observe(ClientJoined("north", 1))
            write()

        def finish_round() -> None:  # a disk that takes no status file may take the history
            run.append(RoundRecord(1, seconds={"round": 1.0}))

        steps = [nothing, write, nothing, join, nothing, finish_round, nothing, stack.close]
        waited = iter(steps)
        seen = [
            (status.state, status.connected)
            for status in stored_status.watch_status(tmp_path, lambda seconds: next(waited)())
        ]
    assert seen == [("running", 0), ("waiting", 0), ("waiting", 1), ("waiting", 1), ("stopped", 0)]
    assert len(reads) == len(seen) and not list(waited), "five reads in nine looks"


def test_a_directory_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="expected the directory of a run"):
        read_status(tmp_path)
