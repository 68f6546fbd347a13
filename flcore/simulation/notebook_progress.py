"""The progress of `flcore.run` in a Jupyter notebook: one output that is updated, and stays with the last state.

Rich's live displays need ipywidgets there; an output with an id needs IPython alone, which every notebook has.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from flcore.event_log.event_lines import warning_line
from flcore.job.contract import Contract
from flcore.number_text import megabytes_text, metrics_text
from flcore.progress import TaskProgress
from flcore.server.events import (
    BytesTransferred,
    ClientFailed,
    ClientJoined,
    Event,
    NoBestModel,
    Observer,
    RoundFinished,
    RoundSkipped,
    RunContinued,
    StoppedEarly,
    TaskAnswered,
    TaskRetried,
    TaskSent,
)
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
def notebook_progress(contract: Contract) -> Iterator[Observer]:
    """Show a run's progress below the cell while the block lasts. A thread of its own updates the output."""
    from IPython.display import HTML, display

    line = ProgressLine(contract)
    handle = display(HTML(line.html()), display_id=True)
    stop = threading.Event()

    def update() -> None:
        while not stop.is_set():
            line.changed.wait()
            line.changed.clear()
            handle.update(HTML(line.html()))
            stop.wait(INTERVAL_S)

    updating = threading.Thread(target=update, daemon=True)
    updating.start()
    try:
        yield line
        line.end("done")
    except BaseException as error:
        line.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    finally:
        stop.set()
        line.changed.set()
        updating.join()
        handle.update(HTML(line.html()))


class ProgressLine:
    """An observer: folds a run's events into one line, and a few warnings.

    Attributes:
        changed: Set by each event.
    """

    def __init__(self, contract: Contract) -> None:
        self.changed = threading.Event()
        self._name, self._rounds, self._round = contract.name, contract.server.rounds, 0
        self._clients, self._metrics, self._ended = "waiting for clients", "", ""
        self._asked = self._answered = self._failed = self._bytes = 0
        self._warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Take an event into account. The server sends events from many threads; none waits here."""
        match event:
            case ClientJoined():
                self._clients = f"{event.connected} clients connected"
            case TaskSent():
                self._asked, self._answered, self._failed = event.client_count, 0, 0
                self._show_clients(event.task)
            case TaskAnswered():
                self._answered += 1
                self._show_clients(event.task)
            case ClientFailed():
                self._failed += 1
                self._show_clients(event.task)
            case TaskProgress():
                self._show_clients(event.task, f" ({event.client} {event.done / event.total:.0%})")
            case BytesTransferred():
                self._bytes += event.sent + event.received
            case RoundFinished(record):
                self._round = record.round
                self._metrics = metrics_text(record.metrics)
            case RunContinued() | TaskRetried() | RoundSkipped() | StoppedEarly() | NoBestModel():
                self._warnings.append(warning_line(event))
            case _:
                return
        self.changed.set()

    def end(self, how: str) -> None:
        """The run is over: done, failed or interrupted."""
        self._ended = how

    def html(self) -> str:
        """Return the present state. Client-controlled text is escaped."""
        elapsed_s = time.monotonic() - self._began
        state = self._ended or self._clients
        parts = (f"{self._round}/{self._rounds} rounds", state, self._metrics, megabytes_text(self._bytes))
        text = ", ".join(escape(printable(part)) for part in parts if part)
        warnings = "".join(f"<br>{escape(printable(line))}" for line in list(self._warnings))
        return (
            f"<div><b>{escape(self._name)}</b> <progress value='{self._round}' max='{self._rounds}'></progress> "
            f"{text}, {elapsed_s:.0f} s{warnings}</div>"
        )

    def _show_clients(self, task: str, progress: str = "") -> None:
        failed = f", {self._failed} failed" if self._failed else ""
        self._clients = f"{task} {self._answered}/{self._asked} clients{progress}{failed}"
