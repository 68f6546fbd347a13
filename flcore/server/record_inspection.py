"""What the record of a run says, read from a copy: the files of a run that may be incomplete stay as they are."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flcore.regular_file import open_regular
from flcore.server.row_checksums import COUNT_FILE
from flcore.server.run_state import PRECEDES_HISTORY, RECORD_SUFFIXES, RunState

COPY_BYTES = 1 << 20
"""The bytes that are copied at a time."""


@dataclass(frozen=True)
class FoundRecord:
    """The record of a run.

    Attributes:
        run_id: The run's id; empty if the record is missing, or has lost its content.
        has_results: Whether it has the result of a call, or an answer: something to go on with.
        has_ended: Whether it says that the run is over.
        rounds: The number of the rounds that are over.
        precedes_history: Whether a round is on the disk in the record before it is in the history.
        contract: The contract, as canonical JSON; empty if the record has lost it.
    """

    run_id: str = ""
    has_results: bool = False
    has_ended: bool = False
    rounds: int = 0
    precedes_history: bool = False
    contract: str = ""

    @property
    def can_go_on(self) -> bool:
        """Whether the run is one that can go on."""
        return bool(self.run_id) and self.has_results and not self.has_ended


def inspect_record(path: Path) -> FoundRecord:
    """Read the record at a path, without a change to its files: SQLite would apply or remove the log beside it.

    Raises:
        RecordError: The record cannot be read.
        OSError: A file of it is a directory, a pipe or a device, or cannot be copied.
    """
    if not path.exists():
        return FoundRecord()
    with tempfile.TemporaryDirectory() as copy:
        for name in (*(path.name + suffix for suffix in RECORD_SUFFIXES), COUNT_FILE):
            file = path.with_name(name)
            if file.exists():
                _copy(file, Path(copy) / file.name)
        with RunState(Path(copy) / path.name, is_synced=False, shown_as=path) as state:
            facts = state.facts()
            return FoundRecord(
                facts.get("id", ""),
                has_results=not state.is_empty(),
                has_ended="ended" in facts,
                rounds=state.last_round(),
                precedes_history=facts.get(PRECEDES_HISTORY) == "yes",
                contract=facts.get("contract", ""),
            )


def _copy(file: Path, to: Path) -> None:
    with open_regular(file) as source, to.open("wb") as target:
        shutil.copyfileobj(source, target, COPY_BYTES)
