"""The progress of `flcore run`: a live line on a terminal, otherwise one line per round."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flcore.event_log.event_lines import first_refusal_line, round_line, warning_line
from flcore.event_log.log import Log
from flcore.job.contract import Contract
from flcore.number_text import bytes_text, metrics_text
from flcore.server.events import (
    AnswerRefused,
    Event,
    NoBestModel,
    Observer,
    RoundFinished,
    RoundSkipped,
    RunContinued,
    StoppedEarly,
    TaskRetried,
)
from flcore.status.board import StatusBoard
from flcore.status.board_watch import BoardWatch
from flcore.status.clients_text import clients_text

MAX_METRICS = 3
"""The most metrics in the live line."""

INTERVAL_S = 0.1
"""The shortest time between two states of the live line."""

MAX_WARNINGS = 100
"""The most warnings that wait for a terminal that is slow; older ones are left out. The log has all."""


@contextmanager
def show_progress(contract: Contract, board: StatusBoard, console: Console) -> Iterator[Observer]:
    """Show a run's progress while the block lasts.

    On a terminal: rounds, clients that have answered, MB, MB/s, the metrics of the last round and the time left.
    Otherwise: one line per round. A terminal that hangs holds up no event.

    Args:
        contract: The job's contract.
        board: The run's board.
        console: Where it is shown.

    Yields:
        An observer of the run.
    """
    if not console.is_terminal:
        with Log("plain") as log:
            yield _line_observer(log.write_line, contract)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds  {task.fields[clients]}  {task.fields[traffic]}  {task.fields[metrics]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        line = _LiveLine(progress, board)
        with BoardWatch(board, line.show, INTERVAL_S, "progress"):
            yield line.observe


def _line_observer(write: Callable[[str], None], contract: Contract) -> Observer:
    refusals = _FirstRefusals()

    def observe(event: Event) -> None:
        match event:
            case RoundFinished():
                write(round_line(event.record, contract))
            case AnswerRefused() if refusals.is_first(event):
                write(first_refusal_line(event))
            case RunContinued() | TaskRetried() | RoundSkipped() | StoppedEarly() | NoBestModel():
                write(warning_line(event))

    return observe


class _FirstRefusals:
    """Of a client that is refused in each round for one reason, the first time is shown; the run's end counts them."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()

    def is_first(self, event: AnswerRefused) -> bool:
        """Whether a client is refused for the first time for a kind of reason."""
        before = len(self._seen)
        self._seen.add((event.client, event.kind))
        return len(self._seen) > before


class _LiveLine:
    """Shows a board as one line of a `rich` progress display, and warnings above it."""

    def __init__(self, progress: Progress, board: StatusBoard) -> None:
        self._progress, self._board = progress, board
        self._warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        status = board.snapshot()
        self._line = progress.add_task(
            escape(status.job), total=status.rounds, clients=clients_text(status), traffic="", metrics=""
        )
        self._refusals = _FirstRefusals()

    def observe(self, event: Event) -> None:
        match event:
            case AnswerRefused() if self._refusals.is_first(event):
                self._warn(first_refusal_line(event))
            case RunContinued() | TaskRetried() | RoundSkipped() | StoppedEarly() | NoBestModel():
                self._warn(warning_line(event))

    def _warn(self, line: str) -> None:
        self._warnings.append(line)
        self._board.wake()

    def show(self) -> None:
        while self._warnings:
            self._progress.console.print(self._warnings.popleft(), markup=False, highlight=False, soft_wrap=True)
        status = self._board.snapshot()
        nbytes = status.bytes_sent + status.bytes_received
        self._progress.update(
            self._line,
            completed=status.rounds_over,
            clients=escape(clients_text(status)),
            traffic=f"{bytes_text(nbytes)}  {status.megabytes_per_s:,.1f} MB/s" if nbytes else "",
            metrics=escape(metrics_text(status.metrics, MAX_METRICS)),
        )
