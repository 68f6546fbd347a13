"""The progress of an upload or a download: bytes and rate, once it has taken more than a second."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from flcore.lead.pack_upload import TransferObserver
from flcore.number_text import bytes_text

QUIET_S = 1.0
"""Seconds for which a transfer shows nothing."""


@contextmanager
def show_transfer(
    verb: str, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[TransferObserver]:
    """Show how far a transfer is while the block lasts: a live line on a terminal, otherwise a line at its end.

    Args:
        verb: What happens to the bytes, such as "sent".
        console: Where the line goes.
        clock: Seconds that never go back.
    """
    with ExitStack() as stack:
        shown = _Transfer(verb, console, clock, stack)
        yield shown
        shown.end()


class _Transfer:
    """Turns bytes that are done into a line. What an earlier transfer has left does not count for the rate.

    Nor does the time before the first call, in which the server may have been away.
    """

    def __init__(self, verb: str, console: Console, clock: Callable[[], float], stack: ExitStack) -> None:
        self._verb, self._console, self._clock, self._stack = verb, console, clock, stack
        self._began_at, self._done = 0.0, 0
        self._first: int | None = None
        self._live: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:
            self._first, self._began_at = done, self._clock()
        self._done = done
        if not self._console.is_terminal or self._clock() - self._began_at < QUIET_S:
            return
        if self._live is None:
            columns = (TextColumn(self._verb), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            live = Progress(*columns, TimeRemainingColumn(compact=True), console=self._console, transient=True)
            self._live = self._stack.enter_context(live)
            self._live.add_task(self._verb, total=total, completed=done)
        self._live.update(self._live.task_ids[0], completed=done, total=total)

    def end(self) -> None:
        """Write the line of the whole transfer, if it has taken long."""
        if self._first is None:
            return
        elapsed_s = self._clock() - self._began_at
        if elapsed_s >= QUIET_S:
            self._console.print(f"{self._verb} {transfer_text(self._done - self._first, elapsed_s)}")


def transfer_text(nbytes: int, elapsed_s: float) -> str:
    """Return bytes, time and rate of a transfer in words.

    >>> transfer_text(5_000_000, 2.0)
    '5.00 MB in 2.0 s, 2.5 MB/s'
    """
    return f"{bytes_text(nbytes)} in {elapsed_s:.1f} s, {nbytes / 1e6 / elapsed_s:,.1f} MB/s"
