"""Checksums of a record's rows, and a count of its changes: a damaged or shortened record is found when it is opened.

SQLite's log has checksums, and its pages have none. A bit that flips in a page may change a value and leave the
database well-formed. Each row therefore has a checksum of its table and values.

A damaged log ends for SQLite before the damage, as if later changes had never been made. The count of the changes is
therefore kept twice: in the record, and in a file beside it that is written after each change is on the disk. After a
power failure that file may be behind the record, and never before it.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path

import xxhash

COUNT_FILE = ".changes"

Value = int | str | bytes | None


def checksum(*values: Value) -> str:
    """Return the checksum of a row: the name of its table, and its values.

    >>> checksum("rounds", 1, "{}") == checksum("rounds", 1, "{} ")
    False
    """
    digest = xxhash.xxh3_64()
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


class ChangeCount:
    """The count of a record's changes in a file of its own. A file that cannot be read or written counts nothing.

    Args:
        path: The file.
        record: Identifies the record: a count of another one says nothing.
        is_writable: Whether changes are noted. Default: True.

    Attributes:
        found: The count in the file; 0 if it has none of this record.
    """

    def __init__(self, path: Path, record: str, *, is_writable: bool = True) -> None:
        self._path, self._record, self._is_writable = path, record, is_writable
        self._file, self.found = -1, 0
        with suppress(OSError, ValueError):
            name, count, sum_ = path.read_text(encoding="ascii").split()
            if name == record and int(sum_, 16) == zlib.crc32(f"{name} {count}".encode()):
                self.found = int(count)

    def note(self, count: int) -> None:
        """Note the count, which the record has on the disk."""
        if not self._is_writable:
            return
        text = f"{self._record} {count:012}"
        with suppress(OSError):
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, f"{text} {zlib.crc32(text.encode()):08x}\n".encode(), 0)

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
