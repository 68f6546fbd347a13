"""A disk that fails where a test says, and a whole job on it: what its operator reads, and what its clients are told.

Faults are put into the functions of `os` and `io` by which flcore reaches the disk, and into SQLite's connection. A
fault is at a call and at a place: a regular expression that is searched in the path, or in the statements and values of
the transaction that is committed.
"""

import errno
import io
import logging
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import GrpcConnection, GrpcServer, InProcessConnection, InProcessServer, Refused, Service

from flcore import Arrays, Job, Outcome, Site, Task, Update
from flcore.client.client import Client
from flcore.errors import DiskError, FlcoreError
from flcore.event_log.log import Log, LogHandler, log_events
from flcore.job.parsing import parse_contract
from flcore.server import serve as serving
from flcore.server import task_runner
from flcore.server.events import Event, Observer, TaskAnswered, ignore_events
from flcore.server.federation import Federation
from flcore.server.recorded_run import Durability
from flcore.server.serve import Server, serve
from tests.flcore.conftest import CODE, Scripted

BY_PATH = ("open", "mkdir", "truncate", "replace", "link", "unlink")
BY_DESCRIPTOR = ("write", "pwrite", "pwritev", "preadv", "fsync", "posix_fallocate")
SQLITE_ERRORS = {
    errno.ENOSPC: (sqlite3.SQLITE_FULL, "database or disk is full"),
    errno.EIO: (sqlite3.SQLITE_IOERR, "disk I/O error"),
    errno.EROFS: (sqlite3.SQLITE_READONLY, "attempt to write a readonly database"),
}


@dataclass
class Fault:
    """A call that fails at a place, until the fault is lifted.

    Attributes:
        call: The regular expression of the call: a function of `os`; "read" for `os.open` that does not write; "create"
            for a file that is written as a whole; "commit" for the run's record.
        place: The regular expression of the place.
        number: The system's number of the error.
        times: After so many errors the fault lifts itself. Default: None, it stays.
        skip: So many calls succeed before.
    """

    call: str
    place: str
    number: int
    times: int | None = None
    skip: int = 0
    hits: int = 0
    is_lifted: bool = False

    @property
    def reasons(self) -> tuple[str, ...]:
        """The words of the system and of SQLite for the error."""
        return os.strerror(self.number), SQLITE_ERRORS[self.number][1]

    def strikes(self, call: str, place: str) -> bool:
        """Whether a call fails now."""
        if self.is_lifted or not re.fullmatch(self.call, call) or not re.search(self.place, place, re.DOTALL):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        self.is_lifted = self.hits == self.times
        return True

    def lift(self) -> None:
        """The disk works again."""
        self.is_lifted = True


class FailingDisk:
    """Puts faults into the process. There is one at a time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fault: Fault | None = None
        self._paths: dict[int, str] = {}  # of open files
        for name in BY_PATH:
            patch.setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in BY_DESCRIPTOR:
            if hasattr(os, name):
                patch.setattr(os, name, self._by_descriptor(name, getattr(os, name)))
        patch.setattr(io, "open", self._creating(io.open))
        patch.setattr(sqlite3, "connect", self._connecting(sqlite3.connect))

    def _by_path(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *rest: Any, **named: Any) -> Any:
            place = " ".join(str(each) for each in (path, *rest) if isinstance(each, str | Path))
            call = "read" if name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else name
            if self.fault is not None and self.fault.strikes(call, place):
                raise OSError(self.fault.number, os.strerror(self.fault.number), str(path))
            result = function(path, *rest, **named)
            if name == "open":
                self._paths[result] = place
            return result

        return called

    def _by_descriptor(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(descriptor: int, *rest: Any) -> Any:
            if self.fault is not None and self.fault.strikes(name, self._paths.get(descriptor, "")):
                raise OSError(self.fault.number, os.strerror(self.fault.number))  # as the system: without a name
            return function(descriptor, *rest)

        return called

    def _creating(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if "w" in mode and self.fault is not None and self.fault.strikes("create", str(path)):
                raise OSError(self.fault.number, os.strerror(self.fault.number), str(path))
            return function(path, mode, *rest, **named)

        return called

    def _connecting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class FailingConnection(sqlite3.Connection):
            said = ""

            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                if sql == "COMMIT" and disk.fault is not None and disk.fault.strikes("commit", self.said):
                    code, text = SQLITE_ERRORS[disk.fault.number]
                    error = sqlite3.OperationalError(text)
                    error.sqlite_errorcode = code
                    raise error
                self.said = "" if sql.startswith("BEGIN") else f"{self.said}{sql} {parameters!r}\n"
                return super().execute(sql, parameters)

            def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
                rows = list(parameters)
                self.said += f"{sql} {rows!r}\n"
                return super().executemany(sql, rows)

        return lambda *arguments, **named: function(*arguments, **named, factory=FailingConnection)


@dataclass
class Report:
    """How a server ended.

    Attributes:
        lines: The operator's log, and the line of the error with which the command ends.
        told: What clients read in their own logs and at the end.
        refusals: What the refusals of their answers and downloads say.
        error: The error with which the server ended.
        outcome: The outcome if there was no error.
        receipts: How often each client got a receipt, by client, task and round.
    """

    lines: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    error: FlcoreError | None = None
    outcome: Outcome | None = None
    receipts: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def lines_about(self, fault: Fault) -> list[str]:
        """The lines about a fault."""
        return [line for line in self.lines if any(reason in line for reason in fault.reasons)]

    @property
    def values(self) -> dict[str, bytes]:
        """The bits of the last model."""
        assert self.outcome is not None, self.lines
        return {name: array.tobytes() for name, array in self.outcome.model.arrays().items()}


def connect(server: Server, refusals: list[str]) -> GrpcConnection | InProcessConnection:
    """Connect a client, and collect what refusals say."""
    if isinstance(server, InProcessServer):
        connection: Any = InProcessConnection(server)
    else:
        connection = GrpcConnection(server.address)
    upload, download = connection.upload, connection.download

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except Refused as error:
            refusals.append(str(error))
            raise

    def uploading(*arguments: Any) -> Any:
        with collected():
            return upload(*arguments)

    def downloading(*arguments: Any) -> Any:
        with collected():
            yield from download(*arguments)

    connection.upload, connection.download = uploading, downloading
    return connection  # type: ignore[no-any-return]


class DiskJob:
    """A job of three clients on a directory that a test makes fail. It may be started again and again.

    Attributes:
        trained: How often each client has trained, by client and round, over all starts.
    """

    def __init__(self, directory: Path, *, rounds: int = 2, clients: int = 3, elements: int = 0, **server: Any) -> None:
        directory.mkdir(exist_ok=True)
        code = CODE if not elements else re.sub(r'"b": np.zeros\(300', f'"b": np.zeros({elements}', CODE)
        (directory / "code.py").write_text(code)
        content = {
            "name": "disk",
            "clients": clients,
            "server": {
                "model": "code.py:initial_model",
                "rounds": rounds,
                "quorum": clients,
                "deadline_s": 20,
                "quorum_retries": 5,
            }
            | server,
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
        }
        self.job = Job(parse_contract(content, "the test's contract"), directory)
        self.trained: Counter[tuple[str, int]] = Counter()

    def start(
        self,
        out: Path,
        *,
        plan: str = "batch",
        durability: Durability = "disk",
        transport: str = "in-process",
        observe: Observer = ignore_events,
    ) -> Report:
        """Run the server and its clients until the server ends."""
        report, names = Report(), self.job.contract.client_names
        clients: list[Client] = []
        ends: list[Future[str]] = []

        def listen(service: Service) -> Server:
            return InProcessServer(service) if transport == "in-process" else GrpcServer(service)

        def started(server: Server, _: Federation) -> None:
            for number, name in enumerate(names, 1):
                connection = connect(server, report.refusals)
                functions = {"train": self._train(name, number), "validate": self._validate}
                client = Client(self.job, Scripted(Site(name, names), functions), connection, report.told.append)
                clients.append(client)
                ends.append(client.start())

        def watch(event: Event) -> None:
            log_line(event)
            observe(event)
            if isinstance(event, TaskAnswered):
                report.receipts[event.client, event.task, event.round] += 1

        with _operators_log(report.lines) as log:
            log_line = log_events(log, self.job.contract)
            try:
                report.outcome = serve(
                    self.job,
                    listen,
                    started=started,
                    wait_for=len(names),
                    directory=out,
                    observe=watch,
                    plan=plan,
                    durability=durability,
                )
            except FlcoreError as error:
                report.error = error
            finally:
                # Clients that get no goodbye would wait for the server that goes on.
                is_awaited = durability == "disk" and isinstance(report.error, DiskError)
                wait(ends, 0.1 if is_awaited else 20)
                for client in clients:
                    client.stop()
        report.told += [str(end.exception() or end.result()) for end in ends]
        if report.error is not None:
            report.lines.append(f"flcore: {report.error}")
        return report

    def _train(self, name: str, number: int) -> Callable[[Arrays, Task], Update]:
        def train(model: Arrays, task: Task) -> Update:
            self.trained[name, task.round] += 1
            arrays = {key: array + np.float32(0.1 * number * task.round) for key, array in model.items()}
            return Update(arrays, weight=float(number), metrics={"loss": 0.5 * number})

        return train

    @staticmethod
    def _validate(model: Arrays, _: Task) -> Update:
        return Update(weight=1.0, metrics={"level": float(model["w"][0, 0])})


@contextmanager
def _operators_log(lines: list[str]) -> Iterator[Log]:
    """Collect the lines of a server's log, libraries' lines among them."""
    log = Log("plain", lambda data: lines.extend(data.decode().splitlines()))
    handler, root = LogHandler(log), logging.getLogger("flcore")
    root.addHandler(handler)
    try:
        with log:
            yield log
    finally:
        root.removeHandler(handler)


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between attempts and after a restart."""
    patch.setattr(task_runner, "SETTLE_TIME_S", 0.0)
    patch.setattr(task_runner, "MAX_RETRY_DELAY_S", 0.01)
    patch.setattr(serving, "RETURN_GRACE_S", 5.0)
