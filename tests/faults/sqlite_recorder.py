"""Records what SQLite does to a database in WAL mode, for a `DiskRecorder`.

SQLite writes from C, past the functions of `os`. A connection of a class of our own therefore compares the files before
and after each statement that changes them, and logs the differences in the order in which SQLite 3 makes them (taken
from a trace of its system calls):

- A commit: the log's header, if it is a new one, and an fsync; the frames, one by one; an fsync if `synchronous` is
  FULL.
- A checkpoint, which follows a commit or precedes the end: an fsync of the log; pages to the database, its size, an
  fsync.
- The first fsync of the log by a connection comes with one of its directory.

With `synchronous=OFF` there is no fsync at all. Another journal mode than WAL is an error.

Between two commits the log has a tail that is not synced, as the frames are separate operations.

The first page of a new database is the only one that SQLite writes with a rollback journal, which is gone at the first
comparison. The journal's effect is logged instead: the file is empty or has the whole page, and never a part of it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.disk_recorder import DiskRecorder
from tests.faults.operations import NameChange, Resize, Sync, Write

NORMAL, FULL = 1, 2
"""Values of `PRAGMA synchronous`."""

WAL_MODE = b"\x02\x02"
"""Bytes 18 and 19 of a database in WAL mode."""

HEADER_BYTES, FRAME_BYTES, PAGE_BYTES = 32, 24 + 4096, 4096
CHANGING = ("COMMIT", "PRAGMA JOURNAL_MODE", "PRAGMA WAL_CHECKPOINT")


class _Database:
    """The files of one database as they were when they were last compared. A file that does not exist is None."""

    def __init__(self, recorder: DiskRecorder, path: Path) -> None:
        self._recorder, self._path = recorder, path
        self._log = path.with_name(f"{path.name}-wal")
        self._is_directory_synced = False
        self._contents: dict[Path, bytes | None] = {file: _read(file) for file in (path, self._log)}
        self._inodes = {file: self._inode_at(file) for file in (path, self._log, path.parent) if file.exists()}

    def compare(self, synchronous: int) -> None:
        """Log what has changed since the last time. `synchronous` is the connection's setting."""
        with self._recorder.lock:
            for file in (self._path, self._log):
                if self._contents[file] is None and file.exists():
                    self._created(file)
            before, after = self._contents[self._log] or b"", _read(self._log)
            if after is not None and after != before:
                self._write_log(before, after, synchronous)
            self._write_pages(self._contents[self._path] or b"", _read(self._path) or b"", synchronous)
            if after is None and self._contents[self._log] is not None:
                if before and synchronous >= NORMAL:  # a checkpoint, even if it has written the same pages again
                    self._add_sync(self._path)
                self._add_name(self._log, None, f"unlink {self._log.name}")
            self._contents = {file: _read(file) for file in (self._path, self._log)}

    def _created(self, file: Path) -> None:
        self._inodes[file] = self._recorder.add_inode(file.stat())
        self._add_name(file, self._inodes[file], f"create {file.name}")
        self._contents[file] = b""

    def _write_log(self, before: bytes, after: bytes, synchronous: int) -> None:
        if before[:HEADER_BYTES] != after[:HEADER_BYTES]:
            self._add_write(self._log, 0, after[:HEADER_BYTES])
            if synchronous >= NORMAL:
                self._add_sync(self._log)
        for start in range(HEADER_BYTES, len(after), FRAME_BYTES):
            frame = after[start : start + FRAME_BYTES]
            if before[start : start + FRAME_BYTES] != frame:
                self._add_write(self._log, start, frame)
        if synchronous >= FULL:
            self._add_sync(self._log)

    def _write_pages(self, before: bytes, after: bytes, synchronous: int) -> None:
        if before == after:
            return
        assert after[18:20] == WAL_MODE, f"{self._path} is not in WAL mode, the only one that this recorder knows"
        is_new = not before
        if synchronous >= NORMAL and not is_new:
            self._add_sync(self._log)
        if is_new:
            self._inodes[self._path] = self._recorder.add_inode(self._path.stat())
        for start in range(0, len(after), PAGE_BYTES):
            page = after[start : start + PAGE_BYTES]
            if before[start : start + PAGE_BYTES] != page:
                self._add_write(self._path, start, page)
        if len(after) < len(before):
            self._recorder.add(Resize(self._inodes[self._path], len(after)))
        if synchronous >= NORMAL:
            self._add_sync(self._path)
        if is_new:
            self._add_name(self._path, self._inodes[self._path], f"first page of {self._path.name}")

    def _add_name(self, file: Path, inode: int | None, text: str) -> None:
        self._recorder.add(NameChange(((self._inodes[file.parent], file.name, inode),), text=text))

    def _add_write(self, file: Path, offset: int, data: bytes) -> None:
        self._recorder.add(Write(self._inodes[file], offset, data))

    def _add_sync(self, path: Path) -> None:
        if path == self._log and not self._is_directory_synced:
            self._is_directory_synced = True
            self._add_sync(path.parent)
        self._recorder.add(Sync(self._inodes[path], str(path.relative_to(self._recorder.root))))

    def _inode_at(self, path: Path) -> int:
        inode = self._recorder.inode(path.stat())
        assert inode is not None, f"{path} is not below the recorded directory"
        return inode


@contextmanager
def recording_sqlite(recorder: DiskRecorder, checkpoint_pages: int) -> Iterator[None]:
    """Record the databases that are opened below the recorder's root as long as the context is open.

    Args:
        recorder: The log.
        checkpoint_pages: A checkpoint follows the commit with which the log has so many pages (SQLite: 1000).
    """
    real: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(path: Any, *args: Any, **keywords: Any) -> sqlite3.Connection:
        file = Path(os.path.realpath(path))
        if recorder.root not in file.parents:
            return real(path, *args, **keywords)
        database = _Database(recorder, file)

        class RecordedConnection(sqlite3.Connection):
            synchronous = FULL

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                (self.synchronous,) = super().execute("PRAGMA synchronous").fetchone()
                database.compare(self.synchronous)  # a PRAGMA takes effect when its cursor is gone, which is now
                cursor = super().execute(sql, *parameters)
                if sql.upper().startswith(CHANGING):
                    database.compare(self.synchronous)
                return cursor

            def close(self) -> None:
                super().close()
                database.compare(self.synchronous)

        connection = real(path, *args, factory=RecordedConnection, **keywords)
        connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
        return connection

    with mock.patch.object(sqlite3, "connect", connect):
        yield


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
