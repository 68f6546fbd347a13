"""What an observer of a run needs to know before the run begins: metrics, traces and trackers are opened with it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flcore.job.contract import Contract
from flcore.server.events import Observer, notify_all
from flcore.status.board import StatusBoard


@dataclass(frozen=True)
class ObservedRun:
    """A run that is about to begin.

    Attributes:
        id: The job's id in a standing federation, else the contract's name.
        contract: The contract.
        board: The run's board. It has folded an event when an observer gets it.
        directory: The run's directory.
    """

    id: str
    contract: Contract
    board: StatusBoard
    directory: Path


OpenObserver = Callable[[ObservedRun], AbstractContextManager[Observer]]
"""Opens an observer of a run. The observer is closed when the run is over."""


@contextmanager
def open_observers(openers: Sequence[OpenObserver], run: ObservedRun) -> Iterator[Observer]:
    """Open several observers of a run, as one, while a block lasts."""
    with ExitStack() as stack:
        yield notify_all(*[stack.enter_context(each(run)) for each in openers])
