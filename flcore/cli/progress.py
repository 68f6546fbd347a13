"""The progress of `flcore run`: a live line on a terminal, otherwise one line per round."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flcore.cli.event_lines import first_refusal_line, metrics_text, round_line, warning_line
from flcore.cli.log import Log
from flcore.job.contract import Contract
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
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
from flcore.text import bytes_text

MAX_METRICS = 3
"""The most metrics in the live line."""


@contextmanager
def show_progress(contract: Contract, console: Console) -> Iterator[Observer]:
    """Show a run's progress while the block lasts.

    On a terminal: rounds, clients that have answered, MB, MB/s, the metrics of the last round and the time left.
    Otherwise: one line per round.
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
        yield _LiveLine(progress, contract)


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
    """Turns events into one line of a `rich` progress display."""

    def __init__(self, progress: Progress, contract: Contract) -> None:
        self._progress = progress
        self._line = progress.add_task(
            contract.name, total=contract.server.rounds, clients="waiting for clients", traffic="", metrics=""
        )
        self._asked = self._answered = self._bytes = 0
        self._refusals = _FirstRefusals()

    def __call__(self, event: Event) -> None:
        match event:
            case ClientJoined():
                self._update(clients=f"{event.connected} clients connected")
            case TaskSent():
                self._asked, self._answered = event.client_count, 0
                self._show_clients(event.task)
            case TaskAnswered():
                self._answered += 1
                self._show_clients(event.task)
            case TaskProgress():
                self._show_clients(event.task, f" ({event.client} {event.done / event.total:.0%})")
            case BytesTransferred():
                self._bytes += event.sent + event.received
                elapsed_s = self._progress.tasks[0].elapsed or 1.0
                self._update(traffic=f"{bytes_text(self._bytes)}  {self._bytes / 1e6 / elapsed_s:,.1f} MB/s")
            case RoundFinished():
                metrics = metrics_text({**event.record.train, **event.record.validate}, MAX_METRICS)
                self._update(advance=1, metrics=escape(metrics))
            case AnswerRefused() if self._refusals.is_first(event):
                self._print(first_refusal_line(event))
            case RunContinued() | TaskRetried() | RoundSkipped() | StoppedEarly() | NoBestModel():
                if isinstance(event, RunContinued):
                    self._update(advance=event.rounds)
                self._print(warning_line(event))

    def _show_clients(self, task: str, progress: str = "") -> None:
        self._update(clients=f"{task} {self._answered}/{self._asked} clients{progress}")

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _update(self, advance: float | None = None, **fields: str) -> None:
        self._progress.update(self._line, advance=advance, **fields)  # type: ignore[arg-type]
