"""A pipe, a device, a socket, a directory or a loop in the place of a run's file: one line, at once, and no wait."""

import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.flcore.command import said
from tests.flcore.reports.written_runs import STOPPED, write_hospital


def to_pipe(path: Path) -> None:
    os.mkfifo(path)


def to_socket(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path.parent)  # the address of a socket has 100 characters at most
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (to_pipe, "expected a regular file, got a named pipe"),
    "socket": (to_socket, "expected a regular file, got a socket"),
    "device": (to_device, "expected a regular file, got a device"),
    "directory": (Path.mkdir, "expected a regular file, got a directory"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}
FILES = ("run.json", "history.jsonl", "audit.jsonl", "status.json", "run.lock")
COMMANDS = [("status",), ("status", "--watch"), ("show",), ("report",), ("compare",), ("plot",)]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_told_at_once(tmp_path: Path, name: str, odd: str) -> None:
    make, expected = ODD[odd]
    run = write_hospital(tmp_path / "run", STOPPED)
    write_hospital(tmp_path / "other")
    (run / name).unlink(missing_ok=True)
    make(run / name)
    for command, *options in COMMANDS:
        if command == "plot" and find_spec("matplotlib") is None:
            continue
        if name == "status.json" and command != "status":
            continue  # only `flcore status` reads it
        others = ["other"] if command == "compare" else []
        printed = said(command, "run", *others, *options, cwd=tmp_path, code=1)
        assert printed.startswith(f"flcore: run/{name}: {expected}"), printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "best.safetensors", "state.sqlite", "state.sqlite-wal"])
def test_a_report_reads_no_pipe_and_no_device(tmp_path: Path, name: str) -> None:
    for odd in ("pipe", "device"):
        run = write_hospital(tmp_path / odd)
        (run / name).unlink(missing_ok=True)
        ODD[odd][0](run / name)
        if name == "state.sqlite-wal":
            (run / "state.sqlite").write_bytes(b"")
        assert said("report", odd, cwd=tmp_path).startswith(f"report: {odd}/report.html (done, ")
