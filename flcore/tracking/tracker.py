"""What a tracker is: it gets a run's parameters, its rounds and its best model. All calls come from one thread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flcore.server.events import RunEnd


@dataclass(frozen=True)
class TrackedRun:
    """A run that is tracked.

    Attributes:
        id: The run's id. A run that goes on after a restart has the same one.
        name: The name under which it is shown: the job and the id.
        job: The contract's name.
        parameters: The contract, flattened: `server.rounds` and so on.
        digests: The fingerprint of the contract, the digest of the code and the version of flcore.
    """

    id: str
    name: str
    job: str
    parameters: Mapping[str, str | int | float | bool]
    digests: Mapping[str, str]


class Tracker(Protocol):
    """Tracks one run. Any method may block and raise: that is the business of its thread alone."""

    def begin(self, run: TrackedRun) -> None:
        """Begin a run, or go on with one that was stopped. Called again at the next event if it has raised."""
        ...

    def log_values(self, round_number: int, values: Mapping[str, float]) -> None:
        """Take the values of a round, by name."""
        ...

    def log_best_model(self, files: Sequence[Path]) -> None:
        """Take the best model of a run that is over. It reads the files a part at a time."""
        ...

    def end(self, end: RunEnd) -> None:
        """End the run. One that is "stopped" or "interrupted" may go on."""
        ...


MakeTracker = Callable[[], Tracker]
