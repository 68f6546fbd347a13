"""The progress of `flcore.run` in a Jupyter notebook: one output that is updated, and stays with the last state.

Rich's live displays need ipywidgets there; an output with an id needs IPython alone, which every notebook has.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from flcore.event_log.event_lines import warning_line
from flcore.number_text import bytes_text, duration_text, metrics_text
from flcore.server.events import (
    Event,
    NoBestModel,
    Observer,
    RoundSkipped,
    RunContinued,
    StoppedEarly,
    TaskRetried,
)
from flcore.status.board import StatusBoard
from flcore.status.board_watch import BoardWatch
from flcore.status.clients_text import clients_text
from flcore.text import printable

INTERVAL_S = 0.2
"""The shortest time between two updates of the output."""

MAX_WARNINGS = 5
"""The most warnings that stay visible, the newest ones."""


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def notebook_progress(board: StatusBoard) -> Iterator[Observer]:
    """Show a run's progress below the cell while the block lasts. A thread of its own updates the output.

    Args:
        board: The run's board.

    Yields:
        An observer of the run, for its warnings.
    """
    from IPython.display import HTML, display

    line = ProgressLine(board)
    handle = display(HTML(line.html()), display_id=True)

    def show() -> None:
        handle.update(HTML(line.html()))

    try:
        with BoardWatch(board, show, INTERVAL_S, "notebook"):
            yield line.observe
    except BaseException:
        line.has_failed = True
        raise
    finally:
        show()


class ProgressLine:
    """The state of a board and the last warnings of its run, as HTML.

    Attributes:
        has_failed: Whether an error has ended the run. The board does not know of a run that could not begin.
    """

    def __init__(self, board: StatusBoard) -> None:
        self._board, self.has_failed = board, False
        self._warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._began = time.monotonic()

    def observe(self, event: Event) -> None:
        """Keep a warning. The server sends events from many threads; none waits here."""
        match event:
            case RunContinued() | TaskRetried() | RoundSkipped() | StoppedEarly() | NoBestModel():
                self._warnings.append(warning_line(event))
                self._board.wake()

    def html(self) -> str:
        """Return the present state. Client-controlled text is escaped."""
        status = self._board.snapshot()
        parts = (
            f"{status.rounds_over}/{status.rounds} rounds",
            "failed" if self.has_failed and not status.is_over else clients_text(status),
            metrics_text(status.metrics),
            bytes_text(status.bytes_sent + status.bytes_received),
            duration_text(time.monotonic() - self._began),
        )
        text = ", ".join(escape(printable(part)) for part in parts if part)
        warnings = "".join(f"<br>{escape(printable(line))}" for line in list(self._warnings))
        bar = f"<progress value='{status.rounds_over}' max='{status.rounds}'></progress>"
        return f"<div><b>{escape(status.job)}</b> {bar} {text}{warnings}</div>"
