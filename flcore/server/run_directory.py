"""The directory of one run. It has one owner at a time, and an earlier run in it is never overwritten.

run.lock             locked by the process that runs, and removed at its end; its text names the process
run.json             the run's id, its job, the contract's fingerprint and the start time
state.sqlite         the record of the run (see `run_state`), from which a restarted server goes on
history.jsonl        one line per round, appended; it follows from the record
status.json          the state of the job while it runs, and of one that failed or was stopped (`flcore.status`)
audit.jsonl          the audit log (see `audit_chain`), appended; it stays also where a run left no results
results.json         what the workflow found besides models (see `results_file`), if it saves something
model.safetensors    the last model (or `model.safetensors.index.json` and shards); best.safetensors is the best one
.updates, .published updates and published models of a run that is not over; they are needed to go on
.optimizer           the states of the server's optimizer, of a run that is not over
.changes             the count of the record's changes, to notice that it has lost some
.clients             of `flcore run`: the state directories of its clients, until the run is over
.staging, .models    updates and models of the running process
.moving              where an earlier run is being moved to (see `run_archive`)
.reserve             disk space for the next model
"""

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from flcore.directory_lock import name_owner, try_lock
from flcore.disk_errors import ADVICE, named
from flcore.errors import JobError, RecordError, RunExists
from flcore.model.atomic_replace import create_directory, sync_file
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.history import RoundRecord
from flcore.server.record_inspection import FoundRecord, inspect_record
from flcore.server.results_file import RESULTS_FILE
from flcore.server.row_checksums import COUNT_FILE
from flcore.server.run_archive import archive_run, finish_archive
from flcore.server.run_state import STATE_FILE, remove_record
from flcore.text import counted, utc_time

LOCK_FILE, RUN_FILE, HISTORY_FILE, RESERVED_FILE = "run.lock", "run.json", "history.jsonl", ".reserve"
PUBLISHED_DIRECTORY = ".published"
"""Holds published models, under the numbers of their calls, for a server that is restarted (`PublishedModels`)."""
RESULT_FILES = (HISTORY_FILE, RESULTS_FILE, "model.safetensors", "model.safetensors.index.json", "best.safetensors")
STATUS_FILE, PARTIAL_STATUS_FILE = "status.json", ".status.json.partial"
TEMPORARY_FILES = (".staging", ".models", RESERVED_FILE, PARTIAL_STATUS_FILE)
LOCK_WAIT_S = 0.05
"""`flcore show` holds the lock for some microseconds. A server that starts just then tries again for this long."""

UPDATES_DIRECTORY = ".updates"
CLIENTS_DIRECTORY = ".clients"
OPTIMIZER_DIRECTORY = ".optimizer"
UNFINISHED_FILES = (UPDATES_DIRECTORY, PUBLISHED_DIRECTORY, OPTIMIZER_DIRECTORY, CLIENTS_DIRECTORY, COUNT_FILE)


class RunDirectory:
    """A directory that this process owns. A context manager.

    A run in it that is not over is continued.

    Args:
        path: The directory. It is created if missing.
        job: The name of the job, for run.json.
        contract_fingerprint: The fingerprint of the contract, for run.json.
        fresh: Move an earlier run to `NAME.1` (or the next free number) beside the directory. Default: False.

    Attributes:
        id: The run's id.
        is_continued: Whether the directory holds a run that is not over.

    Raises:
        RunExists: Another process owns the directory, or it holds a run that is over and `fresh` is False. Nothing was
            changed.
        RecordError: The record of an earlier run cannot be read, or has lost its content. Nothing was changed.
        JobError: The directory cannot be created or written to.
    """

    def __init__(self, path: Path, *, job: str, contract_fingerprint: str, fresh: bool = False) -> None:
        self.path = path
        try:
            self._open(job, contract_fingerprint, fresh=fresh)
        except OSError as error:
            advice = f", or {ADVICE[error.errno]}" if error.errno in ADVICE else ""
            file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
            is_file = file.parent == path and file.name != LOCK_FILE
            expected, got, other = ("file", file, "directory") if is_file else ("directory", path, "one")
            raise JobError(
                f"expected a {expected} that can be written to, got {got}: {error.strerror}; choose another {other} "
                f"(--out){advice}"
            ) from error

    def _open(self, job: str, contract_fingerprint: str, *, fresh: bool) -> None:
        path = self.path
        self._lock = _acquire_lock(path)
        try:
            finish_archive(path)  # of a start with `fresh` that was killed
            results, record = self._describe_results(), self._inspect_record(fresh=fresh)
            self.is_continued = record is not None and record.can_go_on and not fresh
            if not fresh and record is not None and not self.is_continued:
                self._require_no_run(results, record)
            if self.is_continued and record is not None and record.precedes_history:
                self._require_rounds(record.rounds)
            is_in_use = results or record is None or record.can_go_on or _has_content(path / AUDIT_FILE)
            if fresh and is_in_use:
                archive_run(path)
            for name in TEMPORARY_FILES:
                _remove(path / name)
            continued = record.run_id if record is not None and self.is_continued else ""
            self.id = continued or self._begin(job, contract_fingerprint)
            self._history = os.open(path / HISTORY_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except BaseException:
            self._unlock()
            raise

    def _inspect_record(self, *, fresh: bool) -> FoundRecord | None:
        """Return what the record says. With `fresh` it need not be readable: None."""
        try:
            return inspect_record(self.path / STATE_FILE)
        except RecordError:
            if fresh:
                return None
            raise

    def _require_no_run(self, results: str, record: FoundRecord) -> None:
        """Raise an error if the directory holds a run that cannot go on: one that is over, or has lost its record."""
        is_needed = _needs_record(self.path)
        if is_needed and not record.has_ended and (results or not record.run_id):
            what = "lacks its content" if (self.path / STATE_FILE).exists() else "is missing"
            raise RecordError(
                f"{self.path} holds a run that is not over ({results or 'no round is over'}), and its record "
                f"{STATE_FILE} {what}. Nothing was changed. Put {STATE_FILE} and {STATE_FILE}-wal back as the server "
                f"left them, both; or give another directory (--out), or keep that run beside this one and begin anew "
                f"(--fresh)"
            )
        if results:
            if record.has_ended:
                self.finish()  # a process that was killed at the very end may not have done it
            raise RunExists(
                f"{self.path} holds a run already: {results}. Give another directory (--out), or keep that run beside "
                f"this one and begin anew (--fresh)"
            )

    def _require_rounds(self, recorded: int) -> None:
        """Raise `RecordError` if the history has more rounds than the record, which gets each round first."""
        file = self.path / HISTORY_FILE
        rounds = file.read_bytes().count(b"\n") if file.exists() else 0
        if rounds > recorded:
            raise RecordError(
                f"{file} has {rounds} rounds, and the run's record {STATE_FILE} has {recorded}: the record has lost "
                f"its end. Nothing was changed. Put {STATE_FILE} and {STATE_FILE}-wal back as the server left them, "
                f"both; or keep that run beside this one and begin anew (--fresh)"
            )

    def _begin(self, job: str, contract_fingerprint: str) -> str:
        """Begin a new run, and return its id."""
        for name in (STATUS_FILE, *UNFINISHED_FILES):
            _remove(self.path / name)
        remove_record(self.path / STATE_FILE)
        run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        run = {"id": run_id, "job": job, "fingerprint": contract_fingerprint, "started": utc_time()}
        (self.path / RUN_FILE).write_text(json.dumps(run) + "\n", encoding="utf-8")
        sync_file(self.path / RUN_FILE)
        return run_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the reserved space and unlock. Without results, run.json and the empty history are removed too.

        What then tells of the run stays: its audit log, and status.json.
        """
        os.close(self._history)
        try:
            # A disk that is not writable any more has ended the run: this is not the place to tell of it.
            with suppress(OSError):
                self.free_reserve()
                if not self._describe_results() and not (self.path / STATE_FILE).exists():
                    for name in (HISTORY_FILE, RUN_FILE, *UNFINISHED_FILES):
                        _remove(self.path / name)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        """Remove the lock file, then release the lock.

        In this order no other process can lock the file in between. A process that has opened the removed file notices
        it (`_is_at`) and opens the new one.
        """
        with suppress(OSError):  # the lock is what counts; the file may stay
            (self.path / LOCK_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def append(self, record: RoundRecord) -> None:
        """Append a round to the history. If the disk cannot take the whole line, no part of it stays."""
        line = (record.to_json() + "\n").encode("utf-8")
        size = os.fstat(self._history).st_size
        try:
            with named(self.path / HISTORY_FILE):
                written = os.write(self._history, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._history, size)
            raise

    def restore_history(self, records: Sequence[RoundRecord]) -> None:
        """Make the history the one that follows from the run's record. Lines that are right stay as they are."""
        lines = [(record.to_json() + "\n").encode("utf-8") for record in records]
        content = b"".join(lines)
        if os.pread(self._history, len(content) + 1, 0) != content:
            os.ftruncate(self._history, 0)
            for record in records:
                self.append(record)

    def read_history(self) -> list[RoundRecord]:
        """Return the records of the history."""
        with os.fdopen(os.dup(self._history), encoding="utf-8") as file:
            file.seek(0)
            return [RoundRecord.from_json(line) for line in file]

    def sync_history(self) -> None:
        """Flush the history to disk. A run that is over restores it no more."""
        with named(self.path / HISTORY_FILE):
            os.fsync(self._history)

    def finish(self) -> None:
        """The run is over: remove what only its continuation would need."""
        for name in UNFINISHED_FILES:
            _remove(self.path / name)

    def reserve(self, nbytes: int) -> None:
        """Reserve disk space for the next model. Raises `OSError` if there is too little."""
        if not hasattr(os, "posix_fallocate"):  # macOS: no space is reserved
            return
        file = os.open(self.path / RESERVED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with named(self.path / RESERVED_FILE):
                os.posix_fallocate(file, 0, max(1, nbytes))
        except OSError as error:
            self.free_reserve()
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve space
                raise
        finally:
            os.close(file)

    def free_reserve(self) -> None:
        """Free the reserved disk space, so that the next model can be written."""
        (self.path / RESERVED_FILE).unlink(missing_ok=True)

    def _describe_results(self) -> str:
        """Describe the results in the directory; empty if there are none."""
        found = [name for name in RESULT_FILES if _has_content(self.path / name)]
        if not found:
            return ""
        history = self.path / HISTORY_FILE
        rounds = history.read_bytes().count(b"\n") if history.exists() else 0
        models = [f"{name} of {utc_time((self.path / name).stat().st_mtime)}" for name in found if name != HISTORY_FILE]
        return f"{counted(rounds, 'round')}, {', '.join(models) or 'no model'}"


def _acquire_lock(path: Path) -> int:
    """Create a directory if it is missing, and lock it. Returns the descriptor of the lock, or raises `RunExists`."""
    create_directory(path)
    tried_until = time.monotonic() + LOCK_WAIT_S
    while True:
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            owner = try_lock(lock)
            if not owner and _is_at(path / LOCK_FILE, lock):
                name_owner(lock, f", since {utc_time()}")
                return lock
        except OSError:
            os.close(lock)
            raise
        os.close(lock)
        if owner and time.monotonic() >= tried_until:
            raise RunExists(f"{path} is in use by {owner}. Give another directory (--out)")
        if owner:
            time.sleep(LOCK_WAIT_S / 5)
        # Otherwise the owner removed this file after it was opened here: try the file that is there now.


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _needs_record(path: Path) -> bool:
    """Whether a directory has files that only a run leaves that is not over, and has begun."""
    directories = (path / UPDATES_DIRECTORY, path / PUBLISHED_DIRECTORY)
    return _has_content(path / COUNT_FILE) or any(each.is_dir() and any(each.iterdir()) for each in directories)


def has_ended(path: Path) -> bool:
    """Whether a directory holds a run that is over, also if it was killed before it removed what it needed.

    Raises:
        RecordError: The run's record cannot be read.
    """
    if not any(_has_content(path / name) for name in RESULT_FILES):
        return False
    record = inspect_record(path / STATE_FILE)
    return record.has_ended or not (record.has_results or _needs_record(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
