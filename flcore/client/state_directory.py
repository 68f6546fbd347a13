"""The directory in which a client keeps its state across restarts (`flcore client --state DIR`).

client.lock                    locked by the client's process; its text names the process
client.json                    the client's name, the job's, and the contract's fingerprint
run.json                       the id of the server's run that the answers and rounding errors are of
answer-TASK/                   the last answer to a task; it appears by renaming `.answer.partial`
  answer.json                  the assignment that it answers, its content, and the layout of its pieces
  payload.pieces               its pieces, as they are sent
  residuals.pieces             of a compressed update: the rounding errors that it leaves
  received                     of a compressed update: the server has sent a receipt
feedback-TASK-MODEL.pieces     the rounding errors that the task's next update adds; MODEL is a digest of the tensors
job/                           files of the job's code (`Site.state_directory`); flcore reads none of them
"""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Self

from flcore.client.private_files import (
    WRITABLE_BY_OTHERS,
    open_regular,
    read_regular,
    require_private,
    write_synced,
)
from flcore.directory_lock import name_owner, try_lock
from flcore.errors import JobError
from flcore.job.contract import Contract
from flcore.model.atomic_replace import sync_directory

LOCK_FILE, CLIENT_FILE, RUN_FILE, PARTIAL_ANSWER = "client.lock", "client.json", "run.json", ".answer.partial"
JOB_DIRECTORY = "job"
ANSWER_PATTERN, FEEDBACK_PATTERN = "answer-*", "feedback-*.pieces"
FORMAT = 1

MAX_RECORD_BYTES = 1 << 20
"""Of client.json and run.json."""


class StateDirectory:
    """A client's directory, which this process owns. A context manager.

    Args:
        path: The directory. It is created if missing, for its owner alone: updates are private.
        client: The client's name.
        contract: The job's contract.

    Raises:
        JobError: Another process uses the directory; it is another client's, another contract's, or no client's; other
            users can write to it; or it cannot be used.
    """

    def __init__(self, path: Path, *, client: str, contract: Contract) -> None:
        self.path = path
        owner = {"format": FORMAT, "client": client, "job": contract.name, "contract": contract.fingerprint}
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private(path)
            self._require_own_files()
            self._lock = lock_directory(path)
            try:
                self._require_owner(owner)
                shutil.rmtree(path / PARTIAL_ANSWER, ignore_errors=True)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise JobError(
                f"expected a directory that can be written to, got {path}: {error.strerror}; give another one (--state)"
            ) from error

    def job_directory(self) -> Path:
        """Return the directory for files of the job's code (`Site.state_directory`), created if missing."""
        directory = self.path / JOB_DIRECTORY
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory.absolute()

    def read_run(self) -> str | None:
        """Return the id of the run that the answers are of: "" if there is no record, None if it is damaged."""
        try:
            found = json.loads(read_regular(self.path / RUN_FILE, MAX_RECORD_BYTES))
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, RecursionError):
            return None
        run = found.get("run") if isinstance(found, dict) else None
        return run if isinstance(run, str) else None

    def record_run(self, run: str) -> None:
        """Record the id of the run that further answers are of, and flush it to disk. There must be none of another.

        Raises:
            OSError: The disk does not take it. Then there is no record, so what this run leaves is that of none.
        """
        (self.path / RUN_FILE).unlink(missing_ok=True)
        self._write(RUN_FILE, {"run": run})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the directory. The lock file stays: another process may have opened it already."""
        os.close(self._lock)

    def _require_own_files(self) -> None:
        """Refuse a directory with other content, such as a job's: nothing is written there, and nothing removed."""
        files, directories = {LOCK_FILE, CLIENT_FILE, f".{CLIENT_FILE}.partial"}, set[str]()
        entries = {entry.name: entry for entry in sorted(self.path.iterdir())}
        if CLIENT_FILE in entries:
            files |= {RUN_FILE, f".{RUN_FILE}.partial"}
            files |= {name for name, entry in entries.items() if entry.match(FEEDBACK_PATTERN)}
            directories |= {PARTIAL_ANSWER, JOB_DIRECTORY}
            directories |= {name for name, entry in entries.items() if entry.match(ANSWER_PATTERN)}
        for name, entry in entries.items():
            if name not in files | directories:
                raise JobError(
                    f"expected an empty directory, or a client's state, got {self.path} with {name!r}; give another "
                    "one (--state)"
                )
            _require_own(entry, is_directory=name in directories)

    def _require_owner(self, owner: dict[str, object]) -> None:
        """Refuse the state of another client, job or contract; write the owner if there is none yet."""
        file = self.path / CLIENT_FILE
        try:
            found = json.loads(read_regular(file, MAX_RECORD_BYTES))
        except FileNotFoundError:
            self._write(CLIENT_FILE, owner)
            sync_directory(self.path.absolute().parent)
            return
        except (ValueError, RecursionError) as error:
            raise JobError(f"{file}: cannot be read: {error}; remove {self.path}, and start again") from error
        if not isinstance(found, dict) or found != owner:
            held = found if isinstance(found, dict) else {}
            differences = [
                f"{key} {str(held.get(key))[:64]!r}, expected {str(value)[:64]!r}"
                for key, value in owner.items()
                if held.get(key) != value
            ]
            raise JobError(
                f"{self.path} holds the state of another client or job: {'; '.join(differences) or 'unknown keys'}. "
                "Give another directory (--state), or remove this one if it is not needed any more"
            )

    def _write(self, name: str, content: dict[str, object]) -> None:
        """Write a file by an atomic replace, and flush it to disk."""
        partial = self.path / f".{name}.partial"
        write_synced(partial, json.dumps(content).encode() + b"\n")
        partial.replace(self.path / name)
        sync_directory(self.path)


def lock_directory(path: Path) -> int:
    """Lock a directory, and return the descriptor of the lock; or raise `JobError` if another process has it."""
    lock = open_regular(path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        if owner := try_lock(lock):
            raise JobError(f"{path} is in use by {owner}; end that client, or give another directory (--state)")
        name_owner(lock)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _require_own(entry: Path, *, is_directory: bool) -> None:
    """Raise `JobError` unless an entry is of its kind, and only this user can write to it."""
    status = entry.lstat()
    is_right = stat.S_ISDIR(status.st_mode) if is_directory else stat.S_ISREG(status.st_mode)
    if not is_right:
        expected = "a directory" if is_directory else "a regular file"
        raise JobError(f"{entry}: expected {expected}, and no link; remove it, or give another directory (--state)")
    if status.st_uid != os.geteuid() or (is_directory and status.st_mode & WRITABLE_BY_OTHERS):
        raise JobError(f"{entry}: another user can write to it; remove it, or give another directory (--state)")
