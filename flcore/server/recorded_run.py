"""A run on disk while its server runs: its record, its calls, and what it takes to go on or to end."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flcore.aggregation.kept_staging import remove_kept_updates
from flcore.disk_errors import ADVICE, describe_disk_error
from flcore.errors import DiskError, RecordError
from flcore.job.job import Job
from flcore.model.chunks import ChunkSource
from flcore.server.call_log import CallLog
from flcore.server.continuation import open_record
from flcore.server.events import HistoryRestored, Observer, RunContinued
from flcore.server.optimizer_states import OptimizerStates
from flcore.server.results import Results
from flcore.server.run_directory import UPDATES_DIRECTORY, RunDirectory
from flcore.server.run_state import PRECEDES_HISTORY, RecordedReceipt, RunState, remove_record

Durability = Literal["memory", "disk"]
"""When a client gets its receipt (see `serve`)."""


ASSIGNMENTS_OF_A_START = 10_000_000
"""More than a server hands out. No assignment has the id of one from before a restart."""


@dataclass(frozen=True)
class RecordedRun:
    """A run with a directory; or one without, of which nothing is recorded.

    Attributes:
        id: The run's id; empty without a directory.
        calls: The workflow's calls.
        token_key: The secret of the assignments' tokens; None without a directory.
        receipts: The last receipt of each client, of earlier processes.
        first_assignment_id: Ids of assignments begin behind this number: each start of the server has its own.
        kept_updates: Where updates with a receipt lie; None if receipts are for what is in memory.
        optimizer_states: The states of the rule's server optimizer, if it has one.
    """

    id: str = ""
    calls: CallLog = field(default_factory=CallLog)
    token_key: bytes | None = None
    receipts: Mapping[str, RecordedReceipt] = field(default_factory=dict)
    first_assignment_id: int = 0
    kept_updates: Path | None = None
    optimizer_states: OptimizerStates = field(default_factory=lambda: OptimizerStates(None))
    _directory: RunDirectory | None = None
    _state: RunState | None = None

    def restore(self, results: Results, observe: Observer, total_rounds: int) -> None:
        """If the run goes on, bring its results and its files to the state that its record has."""
        directory, calls = self._directory, self.calls
        if directory is None or not calls.is_continued:
            return
        # Before the history: without its model, the run does not go on.
        results.restore(calls.publications, calls.last_past_call)
        directory.restore_history(calls.records())
        remove_kept_updates(directory.path / UPDATES_DIRECTORY, sorted(calls.released))
        observe(RunContinued(self.id, calls.past_rounds, total_rounds))
        observe(HistoryRestored(tuple(calls.records())))

    def finish(self) -> None:
        """Record that the run is over, and remove what only its continuation would need."""
        if self._directory is not None and self._state is not None:
            self._directory.sync_history()
            self._state.add_facts({"ended": "done"})
            self._directory.finish()


@contextmanager
def open_run(
    directory: RunDirectory | None, job: Job, model: ChunkSource, durability: Durability
) -> Iterator[RecordedRun]:
    """Open the record of the run in a directory. A record without a result or an answer is removed at the end.

    Raises:
        RunDiffers: The run that is to go on is of another job.
        RecordError: The record cannot be read or written.
    """
    if directory is None:
        yield RecordedRun()
        return
    is_durable = durability == "disk"
    state = open_record(directory, job, model, is_synced=is_durable)
    try:
        facts = state.facts()
        starts = int(facts.get("starts", "0"))
        state.add_facts({"starts": str(starts + 1), PRECEDES_HISTORY: "yes" if is_durable else "no"})
        yield RecordedRun(
            directory.id,
            CallLog(state, records_answers=is_durable),
            bytes.fromhex(facts["token_key"]),
            state.receipts(),
            starts * ASSIGNMENTS_OF_A_START,
            directory.path / UPDATES_DIRECTORY if is_durable else None,
            OptimizerStates(directory.path),
            directory,
            state,
        )
    finally:
        is_empty = False
        with suppress(RecordError):  # a disk that fails has ended the run: this is not the place to tell of it
            is_empty = state.is_empty()
        state.close()
        if is_empty:
            with suppress(OSError):
                directory.finish()  # before the record: files without one look like a run that has lost it
                remove_record(state.path)


@contextmanager
def explain_disk_errors(directory: Path | None) -> Iterator[None]:
    """Tell the operator of an error of the disk how the run goes on after it."""
    cause: Exception
    try:
        yield
        return
    except DiskError as error:
        cause, text = error, str(error)
    except OSError as error:
        file = error.filename
        is_elsewhere = file is not None and directory is not None and not _is_in(file, directory)
        if directory is None or error.errno not in ADVICE or is_elsewhere:
            raise
        cause, text = error, describe_disk_error(error, directory)
    raise DiskError(f"{text}, then start again: a run that is not over goes on") from cause


def _is_in(file: str | bytes, directory: Path) -> bool:
    return Path(os.fsdecode(file)).is_relative_to(directory)
