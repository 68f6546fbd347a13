"""The directory of one run. It has one owner at a time, and an earlier run in it is never overwritten.

run.lock             locked by the process that runs, and removed at its end; its text names the process
run.json             the run's id, its job, the contract's fingerprint and the start time
history.jsonl        one line per round, appended
audit.jsonl          the audit log (see `audit_chain`), appended; it stays also where a run left no results
model.safetensors    the last model (or `model.safetensors.index.json` and shards); best.safetensors is the best one
.staging, .models    updates and models of the running run
.reserve             disk space for the next model
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from flcore.errors import JobError, RunExists
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.history import RoundRecord

LOCK_FILE, RUN_FILE, HISTORY_FILE, RESERVED_FILE = "run.lock", "run.json", "history.jsonl", ".reserve"
RESULT_FILES = (HISTORY_FILE, "model.safetensors", "model.safetensors.index.json", "best.safetensors")
TEMPORARY_FILES = (".staging", ".models", RESERVED_FILE)
RUN_FILE_PATTERN = re.compile(
    r"run\.json|audit\.jsonl|history\.(jsonl|png)|(model|best|round-\d+)(-[\w-]+)?\.safetensors(\.index\.json)?"
)


class RunDirectory:
    """A directory that this process owns. A context manager.

    Args:
        path: The directory. It is created if missing.
        job: The name of the job, for run.json.
        contract_fingerprint: The fingerprint of the contract, for run.json.
        fresh: Move an earlier run to `NAME.1` (or the next free number) beside the directory. Default: False.

    Raises:
        RunExists: Another process owns the directory, or it holds an earlier run and `fresh` is False. Nothing was
            changed.
        JobError: The directory cannot be created or written to.
    """

    def __init__(self, path: Path, *, job: str, contract_fingerprint: str, fresh: bool = False) -> None:
        self.path = path
        try:
            self._open(job, contract_fingerprint, fresh=fresh)
        except OSError as error:
            raise JobError(
                f"expected a directory that can be written to, got {path}: {error.strerror}; choose another one (--out)"
            ) from error

    def _open(self, job: str, contract_fingerprint: str, *, fresh: bool) -> None:
        path = self.path
        self._lock = _acquire_lock(path)
        try:
            results = self._describe_results()
            if results and not fresh:
                raise RunExists(
                    f"{path} holds a run already: {results}. Give another directory (--out), or keep that "
                    f"run beside this one and begin anew (--fresh)"
                )
            if results or (fresh and _has_content(path / AUDIT_FILE)):
                self._archive()
            for name in TEMPORARY_FILES:
                _remove(path / name)
            self.id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
            run = {"id": self.id, "job": job, "fingerprint": contract_fingerprint, "started": _format_time(time.time())}
            (path / RUN_FILE).write_text(json.dumps(run) + "\n", encoding="utf-8")
            self._history = os.open(path / HISTORY_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the reserved space and unlock. Without results, run.json and the empty history are removed too."""
        try:
            self.free_reserve()
            os.close(self._history)
            if not self._describe_results():
                for name in (HISTORY_FILE, RUN_FILE):
                    (self.path / name).unlink(missing_ok=True)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        """Remove the lock file, then release the lock.

        In this order no other process can lock the file in between. A process that has opened the removed file notices
        it (`_is_at`) and opens the new one.
        """
        (self.path / LOCK_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def append(self, record: RoundRecord) -> None:
        """Append a round to the history. If the disk cannot take the whole line, no part of it stays."""
        line = (record.to_json() + "\n").encode("utf-8")
        size = os.fstat(self._history).st_size
        try:
            written = os.write(self._history, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / HISTORY_FILE))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._history, size)
            raise

    def reserve(self, nbytes: int) -> None:
        """Reserve disk space for the next model. Raises `OSError` if there is too little."""
        if not hasattr(os, "posix_fallocate"):  # macOS: no space is reserved
            return
        file = os.open(self.path / RESERVED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
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
        models = [
            f"{name} of {_format_time((self.path / name).stat().st_mtime)}" for name in found if name != HISTORY_FILE
        ]
        return f"{rounds} rounds, {', '.join(models) or 'no model'}"

    def _archive(self) -> None:
        """Move an earlier run's files to a directory beside this one, or inside it if none can be created there.

        Other files stay where they are.
        """
        path = self.path.resolve()
        try:
            self._archive_in(path.parent)
        except OSError:  # a mount point, or a directory above that is not ours
            self._archive_in(path)

    def _archive_in(self, parent: Path) -> None:
        path, number = self.path.resolve(), 1
        while (archive := parent / f"{path.name}.{number}").exists():
            number += 1
        archive.mkdir()
        try:
            for entry in sorted(path.iterdir()):
                if RUN_FILE_PATTERN.fullmatch(entry.name):
                    entry.rename(archive / entry.name)
        except OSError:
            with suppress(OSError):
                archive.rmdir()  # if nothing was moved
            raise


def _acquire_lock(path: Path) -> int:
    """Create a directory if it is missing, and lock it. Returns the descriptor of the lock, or raises `RunExists`."""
    path.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path / LOCK_FILE, lock):
                os.ftruncate(lock, 0)
                os.pwrite(lock, _owner(), 0)
                return lock
        except BlockingIOError:
            owner = os.pread(lock, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(lock)
            raise RunExists(f"{path} is in use by {owner}. Give another directory (--out)") from None
        except OSError:  # such as a file system without locks
            os.close(lock)
            raise
        os.close(lock)  # the owner removed this file after it was opened here: try the file that is there now


def _owner() -> bytes:
    return f"process {os.getpid()} on {socket.gethostname()}, since {_format_time(time.time())}\n".encode()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
