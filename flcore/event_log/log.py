"""The log of a command: one line for each event, as text or JSON, to standard error, a file, or both.

Events come from threads that must not block, for example on a pipe that nobody reads: each destination has a queue and
a thread of its own (`log_writer`). Text of clients is bounded, and has no control characters.
"""

import json
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from rich.console import Console

from flcore.event_log.event_lines import EventLine, lines_of_run
from flcore.event_log.log_writer import MAX_QUEUED_LINES, LogWriter
from flcore.job.contract import Contract
from flcore.server.events import BytesTransferred, Event
from flcore.text import printable, utc_time

__all__ = [
    "MAX_LINE_CHARACTERS",
    "MAX_QUEUED_LINES",
    "EventLog",
    "Log",
    "LogHandler",
    "console_writer",
    "log_events",
    "write_to_stderr",
]

MAX_LINE_CHARACTERS = 2_000
"""The most characters of a line's text, and of each text among its fields. Escapes come on top."""

TRANSFER_INTERVAL_S = 1.0
"""The shortest time between two lines on bytes that were transferred."""

LEADING_KEYS = ("time", "level", "event", "job", "round", "client", "message")
"""The keys with which a line of JSON begins, in their order. `round` and `client` stand where they apply."""


def write_to_stderr(data: bytes) -> None:
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


def console_writer(console: Console) -> Callable[[bytes], object]:
    """Return a function that writes above the live line of a console."""
    return lambda data: console.print(data.decode("utf-8", "replace").removesuffix("\n"))


class _Output(NamedTuple):
    line_format: str
    writer: LogWriter
    is_file: bool


class Log:
    """Writes lines; any thread may call. As a context, it is closed at its end.

    Args:
        line_format: "text", with time, level, job, round and client at the end of each line; "json"; or "plain", the
            text alone. Default: "text".
        write: Writes bytes. Default: to standard error. None: only the file is written.
        job: The job's name or id, for lines that name no other. Default: "", none.
        level: Lines below this level of `logging` are left out. Default: INFO.
        write_file: Writes bytes to a file, which gets the same lines; "text" for "plain". After an `OSError` the next
            line is tried. Default: None, no file.
    """

    def __init__(
        self,
        line_format: str = "text",
        write: Callable[[bytes], object] | None = write_to_stderr,
        *,
        job: str = "",
        level: int = logging.INFO,
        write_file: Callable[[bytes], object] | None = None,
    ) -> None:
        self.job = job
        self._level = level
        self._outputs: list[_Output] = []
        if write is not None:
            self._add(line_format, write, "nobody read the log", is_file=False)
        if write_file is not None:
            file_format = "text" if line_format == "plain" else line_format
            self._add(file_format, write_file, "the file could not be written", is_file=True)

    def _add(self, line_format: str, write: Callable[[bytes], object], cause: str, *, is_file: bool) -> None:
        def note(dropped: int) -> str:
            text = f"{dropped} lines were left out: {cause}"
            return _format(line_format, text, logging.WARNING, "lines_left_out", {"job": self.job, "lines": dropped})

        self._outputs.append(_Output(line_format, LogWriter(write, note, resumes=is_file), is_file))

    def writes(self, level: int) -> bool:
        """Whether lines of a level are written."""
        return level >= self._level

    def write_line(self, text: str, event: str = "message", *, level: int = logging.INFO, **fields: object) -> None:
        """Write one line: `text`, and in JSON `event` and its fields, too.

        Args:
            text: The line for people. The caller has made text of clients printable.
            event: What has happened, for programs.
            level: A level of `logging`.
            **fields: The event's fields. `job`, `round` and `client` stand in text, too.
        """
        if self.writes(level):
            named = self._with_job(fields)
            for output in self._outputs:
                output.writer.put(_format(output.line_format, text, level, event, named))

    def write_block(self, text: str, event: str, **fields: object) -> None:
        """Write lines for people to copy, without a time; in JSON and in a file, one line like any other."""
        flat = "; ".join(line.strip() for line in text.splitlines())
        for output in self._outputs:
            if output.line_format == "json" or output.is_file:
                output.writer.put(_format(output.line_format, flat, logging.INFO, event, self._with_job(fields)))
            else:
                output.writer.put(text)

    def _with_job(self, fields: Mapping[str, object]) -> dict[str, object]:
        return {**fields, "job": self.job or fields.get("job", "")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait until all lines are written, up to `timeout_s` seconds. The threads end after them."""
        deadline = time.monotonic() + timeout_s
        for output in self._outputs:
            output.writer.close(max(0.0, deadline - time.monotonic()))


def _format(line_format: str, text: str, level: int, event: str, fields: Mapping[str, object]) -> str:
    if line_format == "plain":
        return text
    at, level_name = utc_time(), logging.getLevelName(level)
    if line_format == "text":
        named = "".join(
            f" {key}={printable(str(fields[key]), 100)}" for key in ("job", "round", "client") if fields.get(key)
        )
        return f"{text} [{at} {level_name}{named}]"
    line = {"time": at, "level": level_name, "event": event, "message": text, **_bounded(fields)}
    ordered = {key: line[key] for key in LEADING_KEYS if key in line} | line
    return json.dumps(ordered, default=str).replace("\x7f", "\\u007f")  # JSON escapes all other control characters


def _bounded(value: Any) -> Any:
    """Return fields with each text cut to `MAX_LINE_CHARACTERS`, and numbers that JSON lacks, such as NaN, as text."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case str():
            return value if len(value) <= MAX_LINE_CHARACTERS else f"{value[: MAX_LINE_CHARACTERS - 3]}..."
        case dict():
            return {_bounded(key): _bounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_bounded(each) for each in value]
        case _:
            return value


class LogHandler(logging.Handler):
    """Writes what libraries log to a command's log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, a traceback included, in one line. Raises nothing: the caller may be in a run's way."""
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - whatever the arguments of a library's record raise
            text = f"{record.msg!r:.200} could not be formatted: {type(error).__name__}"
        self._log.write_line(printable(text, MAX_LINE_CHARACTERS), "log", level=record.levelno, logger=record.name)


class EventLog:
    """An observer that writes the line of each event.

    Args:
        log: The log.
        lines: The line of each type of event. Events of other types have none.
        clock: Seconds that never go back.
    """

    def __init__(self, log: Log, lines: Mapping[type, EventLine], clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._lines, self._clock = log, lines, clock
        self._round, self._task_rounds = 0, dict[str, int]()
        self._lock = threading.Lock()
        self._sent, self._received, self._due_at = 0, 0, 0.0

    def __call__(self, event: Any) -> None:
        """Write an event's line. Called from any thread."""
        line = self._lines.get(type(event))
        if line is None:
            return
        number = self._round_of(event, line)
        level = line.level(event)
        if not self._log.writes(level):
            return
        if isinstance(event, BytesTransferred):
            event = self._sum_up(event)
            if event is None:
                return
        fields = line.fields(event)
        if number:
            fields["round"] = number
        name = _event_name(event)
        self._log.write_line(printable(line.text(event), MAX_LINE_CHARACTERS), name, level=level, **fields)

    def _round_of(self, event: Any, line: EventLine) -> int:
        """Return the round of an event; of one that does not name it, the round of its task; 0: none."""
        number, task = int(getattr(event, "round", 0)), getattr(event, "task", "")
        if not number:
            return self._task_rounds.get(task, self._round) if line.is_in_round else 0
        if task:
            self._task_rounds[task] = number
        self._round = max(self._round, number)
        return number

    def _sum_up(self, event: BytesTransferred) -> BytesTransferred | None:
        """Return the sum of transfers since the last line; None if that was just now."""
        with self._lock:
            self._sent, self._received = self._sent + event.sent, self._received + event.received
            now = self._clock()
            if now < self._due_at:
                return None
            self._due_at = now + TRANSFER_INTERVAL_S
            summed = BytesTransferred(self._sent, self._received)
            self._sent = self._received = 0
            return summed


def log_events(log: Log, contract: Contract) -> Callable[[Event], None]:
    """Return an observer that writes the events of a run."""
    return EventLog(log, lines_of_run(contract))


def _event_name(event: Event) -> str:
    """Return an event's name in JSON.

    >>> _event_name(BytesTransferred(1, 1))
    'bytes_transferred'
    """
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
