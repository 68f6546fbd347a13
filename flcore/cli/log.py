"""A server's log: one line for each event, which says when; written by a thread of its own.

Events come from threads that others wait for. So a log that nobody reads stops nothing: its lines are counted and left
out, until it is read again.
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

from flcore.cli.rounds import MOST_NAMED, round_line, trouble_line
from flcore.job.contract import Contract
from flcore.server.events import (
    AskingAgain,
    Departed,
    Event,
    Failed,
    Joined,
    NoBest,
    OddMetrics,
    RoundDone,
    Skipped,
    TurnedAway,
    Waiting,
)
from flcore.text import printable

MOST_WAITING = 10_000
"""Lines that wait for a log that is not read."""

MAX_LINE = 2_000
"""Characters of what others said, in one line."""


def _to_stderr(data: bytes) -> None:
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
    """Writes lines; any thread may call. As a context, it waits a second at its end for what is left to be written.

    `form` is "text", with the time at the end of each line, "json", or "plain", without a time.
    """

    def __init__(self, form: str = "text", write: "Callable[[bytes], object]" = _to_stderr) -> None:
        self._form, self._write = form, write
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._dropped, self._is_writing, self._is_gone = 0, False, False
        start_new_thread(self._write_all, ())

    def say(self, text: str, event: str = "message", **fields: object) -> None:
        """Write one line: `text`, or in JSON `event` and its fields."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._form == "json":
            self._add(json.dumps({"time": at, "event": event, "message": text, **fields}, default=str))
        else:
            self._add(f"{text} [{at}]" if self._form == "text" else text)

    def show(self, text: str, event: str, **fields: object) -> None:
        """Write lines that a person may copy, which have no time; in JSON, an event like any other."""
        if self._form == "json":
            self.say(text, event, **fields)
        else:
            self._add(text)

    def _add(self, line: str) -> None:
        with self._changed:
            if self._is_gone:
                return
            if len(self._lines) < MOST_WAITING:
                self._lines.append(line)
            else:
                self._dropped += 1
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout_s: float = 1.0) -> None:
        """Return when everything is written, or after a while."""
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
                    self._is_gone = True
                    self._lines.clear()
                    self._is_writing = False
                return


class Logged(logging.Handler):
    """Writes what libraries log to a server's log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, a traceback included, in one line."""
        self._log.say(printable(self.format(record), MAX_LINE), "log", level=record.levelname, logger=record.name)


def log_events(log: Log, contract: Contract) -> Callable[[Event], None]:
    """Return an observer that writes what a person may care about."""

    def observe(event: Event) -> None:
        text = _said(event, contract)
        if text is not None:
            fields = {"record": asdict(event.record)} if isinstance(event, RoundDone) else asdict(event)
            log.say(text, _name_of(event), **fields)

    return observe


def _name_of(event: Event) -> str:
    """Return an event's name in JSON.

    >>> _name_of(Joined("a", 1))
    'joined'
    """
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def _said(event: Event, contract: Contract) -> str | None:
    match event:
        case Joined():
            return f"{event.client} joined ({event.connected} connected)"
        case Departed():
            return f"{event.client} left ({event.connected} connected)"
        case TurnedAway():
            reason = "; ".join(line.strip() for line in event.reason.splitlines())
            return f"turned away: {printable(reason, MAX_LINE)}"
        case Failed():
            return f"{event.client} failed in {event.task}: {printable(event.reason, MAX_LINE)}"
        case OddMetrics():
            odd = "; ".join(f"{name}: {why}" for name, why in list(event.metrics.items())[:MOST_NAMED])
            return f"{event.client}: {event.task} counts; these metrics were ignored: {printable(odd, MAX_LINE)}"
        case RoundDone():
            return round_line(event.record, contract)
        case Waiting() | AskingAgain() | Skipped() | NoBest():
            return trouble_line(event)
        case _:
            return None
