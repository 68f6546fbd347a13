"""What a client does: on a terminal one live line, otherwise a line for each transfer that takes long.

The live line has the round, the task, the bytes and the rate of a download or an upload, how far the task is if its
code tells (`flcore.progress`), and the metrics of the last answer.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flcore.cli.agent import ProgressLines
from flcore.cli.transfer_progress import QUIET_S, transfer_text
from flcore.client.observed_connection import ClientActivity
from flcore.event_log.log import Log
from flcore.number_text import bytes_text, metrics_text
from flcore.progress import TaskProgress

MAX_METRICS = 3
"""The most metrics in the live line."""

DONE = {"downloading": "downloaded", "uploading": "uploaded"}


@contextmanager
def show_activity(
    client: str, console: Console, log: Log, clock: Callable[[], float] = time.monotonic
) -> Iterator["ActivityDisplay"]:
    """Show what a client does while the block lasts.

    Args:
        client: The client's name.
        console: Where the live line is shown, if it is a terminal.
        log: Gets the lines.
        clock: Seconds that never go back.
    """
    if not console.is_terminal:
        yield ActivityDisplay(client, log, None, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as live:
        yield ActivityDisplay(client, log, live, clock)


class ActivityDisplay:
    """Shows a client's activity. Any thread may call."""

    def __init__(self, client: str, log: Log, live: Progress | None, clock: Callable[[], float]) -> None:
        self._client, self._log, self._live, self._clock = client, log, live, clock
        self._lines = ProgressLines(log, show_all=False)
        self._lock = threading.Lock()
        self._activity, self._began_at, self._first_byte = ClientActivity(), clock(), 0
        self._row = None if live is None else live.add_task(escape(client), total=None, detail="waiting for a task")

    def tell_activity(self, now: ClientActivity) -> None:
        """The client does something else, or a piece of a transfer is done."""
        with self._lock:
            before = self._activity
            self._activity = now
            is_new = (now.phase, now.task, now.round) != (before.phase, before.task, before.round)
            elapsed_s = self._clock() - self._began_at
            moved = before.done_bytes - self._first_byte
            if is_new:
                self._began_at, self._first_byte = self._clock(), now.done_bytes
        if is_new and before.phase in DONE and elapsed_s >= QUIET_S and moved > 0:
            where = f"round {before.round} of {before.rounds}: {before.task}"
            line = f"{self._client}: {where} {DONE[before.phase]} {transfer_text(moved, elapsed_s)}"
            self._log.write_line(line, DONE[before.phase], client=self._client, round=before.round, nbytes=moved)
        self._show(now, is_new=is_new)

    def tell_progress(self, now: TaskProgress) -> None:
        """The task's code has told how far it is."""
        if self._live is None or self._row is None:
            self._lines(str(now), **asdict(now))
            return
        self._live.update(self._row, completed=now.done, total=now.total)

    def _show(self, now: ClientActivity, *, is_new: bool) -> None:
        if self._live is None or self._row is None:
            return
        where = f" round {now.round}/{now.rounds} {now.task}" if now.task else ""
        description = f"{self._client}:{where} {now.phase}"
        total = now.total_bytes or None
        if is_new:
            self._live.reset(self._row, total=total, description=escape(description), detail=escape(self._detail(now)))
        self._live.update(self._row, completed=now.done_bytes, detail=escape(self._detail(now)))

    def _detail(self, now: ClientActivity) -> str:
        parts = []
        if now.total_bytes:
            elapsed_s = max(self._clock() - self._began_at, 1e-3)
            rate = (now.done_bytes - self._first_byte) / 1e6 / elapsed_s
            parts.append(f"{bytes_text(now.done_bytes)} of {bytes_text(now.total_bytes)}, {rate:,.1f} MB/s")
        if now.metrics:
            parts.append(metrics_text(now.metrics, MAX_METRICS))
        return "  ".join(parts)
