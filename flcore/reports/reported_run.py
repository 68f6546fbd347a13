"""A run as reports show it: from its directory, or from the directory of a download. Only reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcore.errors import FlcoreError, HistoryError, RecordError
from flcore.model.checkpoint import open_model
from flcore.model.chunks import elements_digest
from flcore.model.model_paths import INDEX_SUFFIX
from flcore.regular_file import UnfitFile, open_regular
from flcore.reports.audit_facts import AuditFacts, read_audit_facts
from flcore.server.history import RoundRecord
from flcore.server.record_inspection import inspect_record
from flcore.server.run_directory import RUN_FILE
from flcore.server.run_state import STATE_FILE
from flcore.server.run_summary import ModelFile, RunState, read_run
from flcore.text import counted

DOWNLOADED_RUN = "run"
"""The directory of the run in a download (`flcore download`), and in the directory of a standing server's job."""


@dataclass(frozen=True)
class ReportedModel:
    """A model of a run.

    Attributes:
        file: The name of its file, or of its index.
        round: The round that published it. None: it is not known.
        bytes: The size of its files. None: they are not there.
        digest: "sha256:..." of its file; "xxh3:..." of the elements of a model in several files; empty if it is not
            there and the audit log does not have it.
        is_as_logged: Whether the file has the digest that the audit log has. None: one of them is not there.
    """

    file: str
    round: int | None
    bytes: int | None
    digest: str
    is_as_logged: bool | None


@dataclass(frozen=True)
class ReportedRun:
    """A run.

    Attributes:
        label: The name of its directory.
        id: Its id.
        job: The name of its job.
        fingerprint: The fingerprint of its contract.
        started: When it began, in UTC.
        state: How it stands.
        reason: Why it stands so; empty where there is nothing to say.
        history: The records of its finished rounds.
        contract: Its contract, as parsed JSON. None: the directory does not have it.
        audit: The facts of its audit log.
        model: The last model.
        best: The best model. None: the history names none.
    """

    label: str
    id: str
    job: str
    fingerprint: str
    started: str
    state: RunState
    reason: str
    history: Sequence[RoundRecord]
    contract: dict[str, Any] | None
    audit: AuditFacts
    model: ReportedModel
    best: ReportedModel | None

    @property
    def total_rounds(self) -> int | None:
        """The number of rounds of the contract. None: the contract is not known."""
        rounds = self.server_key("rounds")
        return rounds if type(rounds) is int else None

    @property
    def best_metric(self) -> tuple[str, str] | None:
        """The metric of `server.best`, and "max" or "min". None: the contract has none, or is not known."""
        best = self.server_key("best")
        name, _, direction = best.partition(":") if isinstance(best, str) else ("", "", "")
        return (name, direction) if name else None

    def server_key(self, key: str) -> Any:
        """Return the value of a key of the contract's table `[server]`. None: it is not known."""
        server = (self.contract or {}).get("server")
        return server.get(key) if isinstance(server, dict) else None


def find_run(path: Path) -> Path:
    """Return the directory of the run that a path names: itself, or the one in a download.

    Raises:
        HistoryError: There is no directory.
    """
    if not path.is_dir():
        raise HistoryError(
            f"expected the directory of a run (the one of --out, or runs/NAME) or of a download, got {path}; "
            f"`flcore download ID` makes one of a federation's job"
        )
    nested = path / DOWNLOADED_RUN
    return nested if not (path / RUN_FILE).exists() and (nested / RUN_FILE).exists() else path


def read_reported_run(path: Path) -> ReportedRun:
    """Read a run from its directory, also while it goes on, or from the directory of a download.

    Args:
        path: The directory.

    Returns:
        The run.

    Raises:
        HistoryError: The directory holds no run, or a file of it was damaged.
        OSError: A file cannot be read.
    """
    directory = find_run(path)
    summary, audit = read_run(directory), read_audit_facts(directory)
    return ReportedRun(
        path.resolve().name,
        summary.id,
        summary.job,
        summary.fingerprint,
        summary.started,
        summary.state,
        summary.reason,
        summary.history,
        _read_contract(directory),
        audit,
        _reported(directory, summary.model, audit),
        None if summary.best is None else _reported(directory, summary.best, audit),
    )


def state_text(run: ReportedRun) -> str:
    """Return how a run stands, and why."""
    if not run.reason or run.reason.startswith(f"{run.state} by "):
        return run.reason or run.state
    return f"{run.state}: {run.reason.removeprefix('the job failed: ')}"


def rounds_text(run: ReportedRun) -> str:
    """Return how many rounds are over, and of how many."""
    if run.total_rounds is not None:
        return f"{len(run.history)} of {run.total_rounds} rounds"
    return counted(len(run.history), "round")


def contract_leaves(contract: object, path: str = "") -> dict[str, str]:
    """Return the dotted keys of a contract with the JSON of their values."""
    if not isinstance(contract, dict):
        return {path: json.dumps(contract, ensure_ascii=False)}
    return {
        key: value
        for name, item in contract.items()
        for key, value in contract_leaves(item, f"{path}.{name}" if path else str(name)).items()
    }


def _read_contract(directory: Path) -> dict[str, Any] | None:
    try:
        text = inspect_record(directory / STATE_FILE).contract
        contract = json.loads(text) if text else None
    except (RecordError, UnfitFile, ValueError):
        return None  # the history and the audit log are enough for the rest
    return contract if isinstance(contract, dict) else None


def _reported(directory: Path, model: ModelFile, audit: AuditFacts) -> ReportedModel:
    published = audit.publications.get(model.file)
    logged = "" if published is None or not published.file_digest else f"sha256:{published.file_digest}"
    number = model.round if model.round is not None or published is None else published.round
    digest = "" if model.bytes is None else _digest(directory / model.file)
    is_as_logged = digest == logged if digest.startswith("sha256:") and logged else None
    return ReportedModel(model.file, number, model.bytes, digest or logged, is_as_logged)


def _digest(path: Path) -> str:
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return f"xxh3:{elements_digest(open_model(path))}"
        with open_regular(path) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except (OSError, FlcoreError):
        return ""  # a running server has replaced it, or it was damaged
