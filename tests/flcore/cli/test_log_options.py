"""`--log-file`, `--log-format` and `--verbose`: what is written where, and a disk that is full."""

import errno
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flcore_transport import GrpcConnection

from flcore.cli.log_options import LogOptions
from flcore.doctor.server import check_server
from flcore.event_log.log import LEADING_KEYS, Log
from flcore.federation.bounded_log import BoundedLog
from flcore.server.events import CallRefused
from tests.flcore.command import said
from tests.flcore.event_log.test_event_lines import OF_FEDERATIONS, OF_RUNS
from tests.flcore.processes import client_of, free_port, read_until, server_of, started, write_slow_job


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("flcore")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers, own.level = handlers, level


def test_a_file_is_appended_to_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "logs/server.log"
    for number in range(2):
        with LogOptions("text", path, False).open("job", write=None) as log:
            log.write_line(f"line {number}")
    first, second = path.read_text().splitlines()
    assert first.startswith("line 0 [20") and first.endswith("Z INFO job=job]") and second.startswith("line 1 [20")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "server.log").mkdir()
    with pytest.raises(IsADirectoryError):
        LogOptions("text", tmp_path / "server.log", False).open(write=None)


def test_a_pipe_that_nobody_reads_is_an_error_at_once_and_later_costs_lines(tmp_path: Path) -> None:
    """The opening of a pipe waits for its reader: a server with `--log-file PIPE` never began."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=f"'{pipe}'"):
        LogOptions("text", pipe, False).open(write=None)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with LogOptions("text", pipe, False).open(write=None) as log:
        log.write_line("read")
        while not (found := read_or_nothing(reader)):
            pass
        os.close(reader)
        log.write_line("lost")
    assert found.startswith(b"read [")


def read_or_nothing(reader: int) -> bytes:
    try:
        return os.read(reader, 1000)
    except BlockingIOError:
        return b""


def test_a_block_for_the_screen_is_one_line_of_a_file(tmp_path: Path) -> None:
    shown: list[bytes] = []
    with Log("text", shown.append, write_file=BoundedLog(tmp_path / "log", 1_000).write) as log:
        log.write_block("join with\n  a\n  b", "listening")
    assert b"".join(shown) == b"join with\n  a\n  b\n"
    assert (tmp_path / "log").read_text().startswith("join with; a; b [20")


def test_a_full_disk_costs_lines_and_says_how_many_when_it_has_room_again() -> None:
    data, is_full, tried = list[bytes](), threading.Event(), threading.Semaphore(0)

    def write(line: bytes) -> None:
        try:
            if is_full.is_set():
                data.append(line[:4])  # a disk takes a part of the line that fills it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data.append(line)
        finally:
            tried.release()

    log = Log("json", None, job="job", write_file=write)
    for text, fails in (("one", False), ("two", True), ("three", True), ("four", False)):
        is_full.set() if fails else is_full.clear()
        log.write_line(text)
        assert tried.acquire(timeout=20)
    log.close(20.0)
    lines = b"".join(data).decode().splitlines()
    assert json.loads(lines[0])["message"] == "one"
    four, left_out = (json.loads(line) for line in lines[-2:])
    assert four["message"] == "four"
    assert (left_out["event"], left_out["lines"], left_out["level"], left_out["job"]) == (
        "lines_left_out", 2, "WARNING", "job",
    )  # fmt: skip


def test_a_write_that_the_disk_takes_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = BoundedLog(tmp_path / "log", 1_000)
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:3]))
    with pytest.raises(OSError, match="No space left on device"):
        log.write(b"a line\n")


def test_verbose_adds_what_happens_at_the_level_debug(tmp_path: Path) -> None:
    for is_verbose, expected in ((False, ["info"]), (True, ["debug", "info"])):
        path = tmp_path / f"{is_verbose}.log"
        with LogOptions("text", path, is_verbose).open(write=None) as log:
            log.write_line("debug", level=logging.DEBUG)
            log.write_line("info")
        assert [line.partition(" [")[0] for line in path.read_text().splitlines()] == expected


def test_what_libraries_log_is_a_line_with_its_level(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogOptions("json", path, False).open("job", write=None):
        logging.getLogger("flcore.somewhere").warning("odd\n\x1b[2J")
    (found,) = map(json.loads, path.read_text().splitlines())
    assert (found["level"], found["event"], found["logger"]) == ("WARNING", "log", "flcore.somewhere")
    assert found["message"] == "odd\\n\\x1b[2J" and found["job"] == "job"


@pytest.mark.long
class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("a text is not to be had")


@pytest.mark.parametrize(("text", "argument"), [("%d bytes", "many"), ("%s", Unprintable()), ("%(a)s", 5)])
def test_a_record_that_cannot_be_formatted_is_a_line_and_no_error_of_its_caller(text: str, argument: object) -> None:
    """A library logs in the middle of a run."""
    written: list[bytes] = []
    with LogOptions("json", None, False).open(write=written.append):
        logging.getLogger("a.library").warning(text, argument)
    line = json.loads(b"".join(written))
    assert line["message"].startswith(f"{text!r} could not be formatted: ") and line["logger"] == "a.library"


def test_server_client_and_run_log_in_the_same_way(tmp_path: Path) -> None:
    write_slow_job(tmp_path, rounds=1)
    (tmp_path / "small/job.toml").write_text(
        (tmp_path / "small/job.toml").read_text().replace('["one", "two", "three"]', '["one", "two"]')
    )
    port, options = free_port(), ("--log-format", "json", "--verbose", "--log-file")
    with started(*server_of(port, *options, "server.log"), cwd=tmp_path) as server:
        printed = read_until(server, '"listening"')
        with closing(GrpcConnection(f"localhost:{port}")) as connection:
            assert [each.name for each in check_server(connection)] == ["server", "clock", "download", "upload"]
        with (
            started(*client_of(port, "one"), *options, "one.log", cwd=tmp_path) as one,
            started(*client_of(port, "two"), "--log-file", "/dev/full", cwd=tmp_path) as two,
        ):
            assert [process.wait(60) for process in (server, one, two)] == [0, 0, 0]
            assert two.stdout is not None and server.stdout is not None
            assert "two: joined" in two.stdout.read()
        assert printed + server.stdout.read() == (tmp_path / "server.log").read_text()
    said("run", "small", "--out", "again", "--workers", "0", *options, "run.log", cwd=tmp_path)
    told = {name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
            for name in ("server.log", "one.log", "run.log")}  # fmt: skip
    for lines in told.values():
        assert {line["job"] for line in lines} == {"small"} and all(line["time"] and line["level"] for line in lines)
    expected = {"run_started", "client_joined", "task_sent", "task_answered", "round_finished", "run_ended"}
    for name in ("server.log", "run.log"):
        assert expected <= {line["event"] for line in told[name]}
        assert {line["round"] for line in told[name] if line["event"] == "task_answered"} == {1}
    assert {line["client"] for line in told["one.log"]} == {"one"}


def test_the_page_has_each_event_at_its_level() -> None:
    """docs/logs.md: its commands are parsed by `tests/test_docs.py`; options like theirs run above."""
    page = (Path(__file__).parents[3] / "docs/logs.md").read_text()
    levels = dict(re.findall(r"^\| `(ERROR|WARNING|INFO|DEBUG)` \| (.*) \|$", page, re.MULTILINE))
    for event, level, *_ in (*OF_RUNS, *OF_FEDERATIONS):
        name = re.sub("(?<!^)([A-Z])", r"_\1", type(event).__name__).lower()
        if not isinstance(event, CallRefused):
            assert f"`{name}`" in levels[level], (name, level)
    keys = re.findall(r"^\| `(\w+)` \| (?:string|integer) \|", page, re.MULTILINE)
    assert keys == list(LEADING_KEYS)
