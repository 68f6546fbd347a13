"""A server's log: one line with a time for each event, written by its own thread.

Events come from threads that must not block, for example on a pipe that nobody reads. Lines queue up to a limit; beyond
it they are dropped and counted, until the log is read again.
"""

import json
import logging
import os
import select
import sys
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Self

from flcore.cli.event_lines import MAX_NAMES_SHOWN, round_line, warning_line
from flcore.job.contract import Contract
from flcore.server.events import (
    ClientFailed,
    ClientJoined,
    ClientLeft,
    ClientRevoked,
    Event,
    InvalidMetrics,
    JoinRefused,
    NoBestModel,
    RoundFinished,
    RoundSkipped,
    TaskRetried,
    WaitingForClients,
)
from flcore.text import printable

MAX_QUEUED_LINES = 10_000
"""The most lines that wait to be written."""

MAX_LINE_CHARACTERS = 2_000
"""The most characters of a client's text in one line."""


def _write_to_stderr(data: bytes) -> None:
    """Write to standard error without Python's buffer, whose lock the end of the process would wait for."""
    try:
        file = sys.stderr.fileno()
    except (OSError, ValueError):  # a stream in memory
        sys.stderr.write(data.decode("utf-8"))
        return
    while data:
        try:
            data = data[os.write(file, data) :]
        except BlockingIOError:  # somebody else has made it non-blocking
            select.select([], [file], [])


class Log:
    """Writes lines; any thread may call. As a context, it waits up to 1 s at its end for queued lines.

    `line_format` is "text", with the time at the end of each line, "json", or "plain", without a time.
    """

    def __init__(self, line_format: str = "text", write: "Callable[[bytes], object]" = _write_to_stderr) -> None:
        self._line_format, self._write = line_format, write
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._dropped, self._is_writing, self._is_broken = 0, False, False
        start_new_thread(self._write_all, ())

    def write_line(self, text: str, event: str = "message", **fields: object) -> None:
        """Write one line: `text`, or in JSON `event` and its fields."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._line_format == "json":
            self._enqueue(json.dumps({"time": at, "event": event, "message": text, **fields}, default=str))
        else:
            self._enqueue(f"{text} [{at}]" if self._line_format == "text" else text)

    def write_block(self, text: str, event: str, **fields: object) -> None:
        """Write lines for people to copy, without a time; in JSON, an event like any other."""
        if self._line_format == "json":
            self.write_line(text, event, **fields)
        else:
            self._enqueue(text)

    def _enqueue(self, line: str) -> None:
        with self._changed:
            if self._is_broken:
                return
            if len(self._lines) < MAX_QUEUED_LINES:
                self._lines.append(line)
            else:
                self._dropped += 1
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait until all lines are written, up to `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line, dropped = self._lines.popleft(), 0
                self._is_writing = True
                if not self._lines:
                    dropped, self._dropped = self._dropped, 0
            if dropped:
                line += f"\n{dropped} lines were left out: nobody read the log"
            try:
                self._write((line + "\n").encode("utf-8", "backslashreplace"))
            except OSError:  # the log is gone; the job goes on without
                with self._changed:
                    self._is_broken = True
                    self._lines.clear()
                    self._is_writing = False
                return


class LogHandler(logging.Handler):
    """Writes what libraries log to a server's log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, a traceback included, in one line."""
        self._log.write_line(
            printable(self.format(record), MAX_LINE_CHARACTERS), "log", level=record.levelname, logger=record.name
        )


def log_events(log: Log, contract: Contract) -> Callable[[Event], None]:
    """Return an observer that writes what a person may care about."""

    def observe(event: Event) -> None:
        text = _event_text(event, contract)
        if text is not None:
            fields = {"record": asdict(event.record)} if isinstance(event, RoundFinished) else asdict(event)
            log.write_line(text, _event_name(event), **fields)

    return observe


def _event_name(event: Event) -> str:
    """Return an event's name in JSON.

    >>> _event_name(ClientJoined("a", 1))
    'client_joined'
    """
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _event_text(event: Event, contract: Contract) -> str | None:
    match event:
        case ClientJoined():
            return f"{event.client} joined ({event.connected} connected)"
        case ClientLeft():
            return f"{event.client} left ({event.connected} connected)"
        case ClientRevoked():
            return f"ended the session of {event.client}: {printable(event.reason, MAX_LINE_CHARACTERS)}"
        case JoinRefused():
            reason = "; ".join(line.strip() for line in event.reason.splitlines()).replace(":; ", ": ")
            return f"turned away: {printable(reason, MAX_LINE_CHARACTERS)}"
        case ClientFailed():
            return f"{event.client} failed in {event.task}: {printable(event.reason, MAX_LINE_CHARACTERS)}"
        case InvalidMetrics():
            odd = "; ".join(f"{name}: {why}" for name, why in list(event.metrics.items())[:MAX_NAMES_SHOWN])
            ignored = printable(odd, MAX_LINE_CHARACTERS)
            return f"{event.client}: {event.task} counts; these metrics were ignored: {ignored}"
        case RoundFinished():
            return round_line(event.record, contract)
        case WaitingForClients() | TaskRetried() | RoundSkipped() | NoBestModel():
            return warning_line(event)
        case _:
            return None
