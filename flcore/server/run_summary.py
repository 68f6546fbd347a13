"""A run as its directory shows it: who runs it or how it ended, its rounds and its models. Only reads."""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flcore.errors import HistoryError
from flcore.model.model_paths import INDEX_SUFFIX
from flcore.model.stored_model import resolve_checkpoint
from flcore.regular_file import open_descriptor, open_regular, read_regular
from flcore.server.audit_chain import AUDIT_FILE, MAX_LINE_BYTES, Entry, check_line
from flcore.server.events import RunEnd
from flcore.server.history import RoundRecord
from flcore.server.history_table import ALTERED, read_history
from flcore.server.run_directory import HISTORY_FILE, LOCK_FILE, RUN_FILE
from flcore.text import printable

MAX_REASON_CHARACTERS = 500
"""The most characters of the reason of an end."""

START_FIELDS = {"id": "run", "job": "job", "fingerprint": "contract", "started": "time"}
"""The fields of an audit log's `start` by the names that run.json has for them."""

TAIL_BYTES = 16 * MAX_LINE_BYTES
"""How much of an audit log is read to find how its run has ended."""

MAX_RUN_BYTES = 1 << 20
"""A larger run.json is none that a server has written."""

MAX_NAME_CHARACTERS = 255
"""The most characters of a file's name."""

INDEX_TRIES = 5
"""How often the size of a model in shards is read. A replacement after its index was read removes the shards."""


RunState = Literal["running"] | RunEnd
"""What a run's directory says of it: a process owns it, or how it has ended. After a crash it is stopped."""

CRASHED = "its server ended without a word, as after a crash; start it again to go on"


@dataclass(frozen=True)
class ModelFile:
    """A model in a run's directory.

    Attributes:
        file: The name of its file, or of its index.
        round: The round that published it. None: the history does not say it.
        bytes: The size of its files. None: they are not there (any more).
    """

    file: str
    round: int | None
    bytes: int | None


@dataclass(frozen=True)
class RunSummary:
    """A run: who ran it, how it stands, its rounds and its models.

    Attributes:
        id: The run's id.
        job: The job's name.
        fingerprint: The contract's fingerprint.
        started: When it began, in UTC.
        state: How it stands.
        owner: The process that runs it; empty if none does.
        reason: Why it ended; empty while it runs, and if it is done.
        history: The records of the finished rounds.
        model: The last published model.
        best: The best model. None: the history names none.
        checkpoints: The models that `server.checkpoint_every` kept.
    """

    id: str
    job: str
    fingerprint: str
    started: str
    state: RunState
    owner: str
    reason: str
    history: Sequence[RoundRecord]
    model: ModelFile
    best: ModelFile | None
    checkpoints: Sequence[ModelFile]


def read_run(path: Path) -> RunSummary:
    """Read a run from its directory, also while it goes on.

    Args:
        path: The run's directory.

    Returns:
        The run. Its rounds are those that had finished when the history was read.

    Raises:
        HistoryError: The directory holds no run, or a file of it was damaged. The error names the file and the line.
        OSError: A file cannot be read.
    """
    described = _read_run_file(path)
    owner = lock_owner(path)  # before the files: a run that ends meanwhile has written all of them
    history = read_history(path) if os.path.lexists(path / HISTORY_FILE) else []
    end: tuple[RunState, str] = ("running", "") if owner else _read_end(path / AUDIT_FILE)
    state, reason = end
    best_round = next((record.round for record in reversed(history) if record.is_best), None)
    return RunSummary(
        **described,
        state=state,
        owner=owner,
        reason=reason,
        history=history,
        model=_model_file(path, "model.safetensors", None),
        best=None if best_round is None else _model_file(path, "best.safetensors", best_round),
        checkpoints=[_checkpoint(path, record) for record in history if record.checkpoint],
    )


def lock_owner(path: Path) -> str:
    """Return the text of the process that owns a run's directory, or "" if none does.

    The lock tells it, not the file: a killed process leaves its file and no lock. A shared lock is asked for and given
    back at once.
    """
    try:
        lock = open_descriptor(path / LOCK_FILE)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return printable(os.pread(lock, 200, 0).decode("utf-8", "replace").strip()) or "another process"
    finally:
        os.close(lock)
    return ""


def _read_run_file(path: Path) -> dict[str, str]:
    try:
        content = read_regular(path / RUN_FILE, MAX_RUN_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        path.stat()  # raises `OSError` if nothing is there
        if (path / AUDIT_FILE).is_file() and not (path / HISTORY_FILE).exists():
            if begun := _begun_in_log(path / AUDIT_FILE):
                return begun
            raise HistoryError(
                f"the run in {path} had not begun: its server ended before the first round, and left its audit log "
                f"alone; start the server again"
            ) from None
        raise HistoryError(
            f"expected the directory of a run, which holds {RUN_FILE}, got {path}; give the one of --out"
        ) from None
    try:
        described = json.loads(content)
        found = {name: described[name] for name in ("id", "job", "fingerprint", "started")}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, content) from error
    if not all(isinstance(value, str) for value in found.values()):
        raise _damaged(path, content)
    return {name: printable(value) for name, value in found.items()}


def _begun_in_log(log: Path) -> dict[str, str]:
    """Describe the last run that an audit log says has begun; empty if none has.

    A run that ends before its first result removes its other files, so that its directory is free for another one.
    """
    found: dict[str, str] = {}
    with open_regular(log) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if isinstance(entry := check_line(line, 0), Entry) and entry.event == "start":
                fields = _fields(line)
                found = {name: printable(str(fields.get(key))) for name, key in START_FIELDS.items()}
    return found


def _damaged(path: Path, content: bytes) -> HistoryError:
    got = printable(content.decode("utf-8", "replace"), 80)
    return HistoryError(
        f"expected id, job, fingerprint and started as text in {path / RUN_FILE}, got {got!r}: {ALTERED}"
    )


def _read_end(log: Path) -> tuple[RunState, str]:
    """Return how a run ended, and why, by its audit log, of which the end is read."""
    entry = _last_of_run(log)
    if entry.get("event") != "end":
        return "stopped", CRASHED
    end: RunEnd = "done" if entry.get("failed") is False else "stopped"  # of a log that does not name the end
    end = next((each for each in get_args(RunEnd) if each == entry.get("end")), end)
    reason = "" if end == "done" else str(entry.get("cause") or entry.get("reason", ""))
    return end, printable(reason, MAX_REASON_CHARACTERS)


def _last_of_run(log: Path) -> dict[str, Any]:
    """Return the last entry that a run has begun, goes on or has ended; empty if there is none near the log's end.

    Late answers may be refused after a run's end, so its entry need not be the last one.
    """
    try:
        file = open_regular(log)
    except FileNotFoundError:
        return {}
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    for line in reversed(lines):
        if isinstance(entry := check_line(line + b"\n", 0), Entry) and entry.event in ("start", "continued", "end"):
            return _fields(line)
    return {}


def _fields(entry: bytes) -> dict[str, Any]:
    """Return the fields of an entry; empty if they cannot be read: a digest that fits makes no JSON of it."""
    try:
        fields = json.loads(entry)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _checkpoint(path: Path, record: RoundRecord) -> ModelFile:
    """Return the model that a round has kept."""
    name = record.checkpoint
    if Path(name).name != name or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise HistoryError(
            f"expected the name of a file as the checkpoint of round {record.round} in {path / HISTORY_FILE}, got "
            f"{printable(name, 100)!r}: {ALTERED}"
        )
    return _model_file(path, name, record.round)


def _model_file(path: Path, name: str, number: int | None) -> ModelFile:
    for _ in range(INDEX_TRIES):
        found = resolve_checkpoint(path / name)
        try:
            return ModelFile(found.name, number, _size(found))
        except FileNotFoundError:
            continue
    return ModelFile(name, number, None)


def _size(path: Path) -> int:
    """Return the size of a model's file, or of an index and its shards."""
    size = path.stat().st_size
    if not path.name.endswith(INDEX_SUFFIX):
        return size
    try:
        shards: set[str] = set(json.loads(read_regular(path))["weight_map"].values())
        return size + sum((path.parent / name).stat().st_size for name in shards)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HistoryError(f"expected the index of a model in {path}; {error!r}: {ALTERED}") from error
