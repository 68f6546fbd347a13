"""The zip file of a pack: one form of it, which is written and read here. Any unzip program reads it, too.

Entries are stored one after the other without compression, with fixed times and modes, so that their names and contents
determine every byte. The reader accepts that form alone: it compares each header with the one that the writer would
make. So there is no second directory, no link, no encrypted or compressed entry, and no byte between entries.
"""

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from flcore.errors import PackError
from flcore.text import printable

MAX_PACK_BYTES = 2**32 - 1
"""The most bytes that the fields of a zip file without extensions can count."""

MAX_NAME_BYTES = 512
CHUNK_BYTES = 1 << 20

_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_VERSION, _UNIX, _UTF8, _ENCRYPTED, _STORED = 20, 3 << 8, 0x800, 0x1, 0
_DATE = 0x21
"""1980-01-01, the first day of zip files; the time is 00:00."""
_MODE = stat.S_IFREG | 0o644

_MAKE_AGAIN = "get the file again, or make it again (flcore job pack)"


@dataclass(frozen=True)
class Entry:
    """One file of an archive: its name with slashes, its size, and the CRC-32 of its content."""

    name: str
    nbytes: int
    crc: int

    @property
    def _fields(self) -> tuple[int, ...]:
        flags = 0 if self.name.isascii() else _UTF8
        size = len(self.name.encode())
        return _VERSION, flags, _STORED, 0, _DATE, self.crc, self.nbytes, self.nbytes, size, 0

    @property
    def local_header(self) -> bytes:
        """The bytes before the entry's content."""
        return _LOCAL.pack(_LOCAL_MARK, *self._fields) + self.name.encode()

    def central_header(self, offset: int) -> bytes:
        """The entry in the directory at the archive's end; `offset` is that of its local header."""
        fields = (_UNIX | _VERSION, *self._fields, 0, 0, 0, _MODE << 16, offset)
        return _CENTRAL.pack(_CENTRAL_MARK, *fields) + self.name.encode()


def _directory(entries: Iterable[Entry], start: int) -> bytes:
    """Return the archive's end, which begins at `start`: its directory and the end record."""
    headers, offset = [], 0
    for entry in entries:
        headers.append(entry.central_header(offset))
        offset += len(entry.local_header) + entry.nbytes
    size = sum(map(len, headers))
    end = _END.pack(_END_MARK, 0, 0, len(headers), len(headers), size, start, 0)
    return b"".join((*headers, end))


def archive_bytes(entries: Iterable[Entry]) -> int:
    """Return the size of an archive."""
    rows = list(entries)
    start = sum(len(entry.local_header) + entry.nbytes for entry in rows)
    return start + sum(len(entry.central_header(0)) for entry in rows) + _END.size


class ArchiveWriter:
    """Writes an archive entry by entry into a file. Checks that each content is as its `Entry` announces.

    Attributes:
        digest: The SHA-256 of all that was written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._entries, self._position = file, list[Entry](), 0
        self.digest = hashlib.sha256()

    def add(self, entry: Entry, content: Iterable[bytes]) -> None:
        """Write an entry, or raise `PackError` if the content has another size or checksum."""
        self._write(entry.local_header)
        nbytes = crc = 0
        for chunk in content:
            nbytes, crc = nbytes + len(chunk), zlib.crc32(chunk, crc)
            if nbytes > entry.nbytes:
                break
            self._write(chunk)
        if (nbytes, crc) != (entry.nbytes, entry.crc):
            raise PackError(
                f"{entry.name}: expected a file at rest, got one that changed while it was packed; try again"
            )
        self._entries.append(entry)

    def finish(self) -> None:
        """Write the directory."""
        self._write(_directory(self._entries, self._position))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self._position += len(data)


class ArchiveReader:
    """Reads an archive once, from its first byte to its last. Holds no more than one chunk of it.

    Attributes:
        size: The file's size.
        digest: The SHA-256 of all that was read; of the whole file after `finish`.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open a file. Raises `PackError` if there is none, or it is larger than `max_bytes`."""
        self._path, self._entries, self._position, self._unread = path, list[Entry](), 0, b""
        self.digest = hashlib.sha256()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait otherwise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PackError(f"{path}: expected a pack: {reason}; give the path of a file .flpack") from error
        found = os.fstat(descriptor)
        self.size, problem = found.st_size, ""
        if not stat.S_ISREG(found.st_mode):
            problem = "expected a pack, got a directory, a pipe or a device; give a file .flpack"
        elif self.size > max_bytes:
            problem = (
                f"expected a pack of at most {max_bytes:,} bytes, got {self.size:,}; take large files out of the job, "
                f"or have the limit raised"
            )
        if problem:
            os.close(descriptor)
            raise PackError(f"{path}: {problem}")
        self._file: BinaryIO = os.fdopen(descriptor, "rb", buffering=CHUNK_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def remaining(self) -> int:
        """The bytes that are not read yet."""
        return self.size - self._position

    def next_entry(self) -> Entry | None:
        """Read the next entry's header; None where the directory begins. Its content has to be read next."""
        mark = self._read(4)
        if mark == _CENTRAL_MARK:
            self._unread = mark  # `finish` compares it with the rest of the directory
            return None
        if mark != _LOCAL_MARK:
            where = "a zip file" if not self._entries else f"an entry after {self._entries[-1].name!r}"
            raise self.error(f"expected {where}, got other bytes")
        header = mark + self._read(_LOCAL.size - len(mark))
        _, _, flags, method, _, _, crc, packed, nbytes, name_bytes, _ = _LOCAL.unpack(header)
        if name_bytes > MAX_NAME_BYTES:
            raise self.error(f"expected names of at most {MAX_NAME_BYTES} bytes, got one of {name_bytes}")
        raw = self._read(name_bytes)
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"expected names in UTF-8, got {raw[:100]!r}") from error
        shown = repr(printable(name, 100))
        if flags & _ENCRYPTED:
            raise self.error(f"{shown}: expected an entry that is not encrypted")
        if method != _STORED or packed != nbytes:
            raise self.error(f"{shown}: expected an entry without compression")
        entry = Entry(name, nbytes, crc)
        if header + raw != entry.local_header:
            raise self.error(f"{shown}: expected an entry as `flcore job pack` writes it, got another header")
        if nbytes > self.remaining:
            raise self.error(f"{shown}: expected {nbytes:,} bytes, got a file that ends after {self.remaining:,}")
        self._entries.append(entry)
        return entry

    def content(self, entry: Entry) -> Iterator[bytes]:
        """Read an entry's content in chunks. Raises `PackError` at the end if its checksum differs."""
        left, crc = entry.nbytes, 0
        while left:
            chunk = self._read(min(left, CHUNK_BYTES))
            left, crc = left - len(chunk), zlib.crc32(chunk, crc)
            yield chunk
        if crc != entry.crc:
            raise self.error(f"{printable(entry.name, 100)!r}: expected content with its checksum, got changed bytes")

    def finish(self) -> None:
        """Read the directory and the file's end. Raises `PackError` where they are not those of the entries."""
        start, offset = self._position - len(self._unread), 0
        for entry in self._entries:
            expected = entry.central_header(offset)
            found = self._read(len(expected))
            if found != expected:
                raise self.error(f"{printable(entry.name, 100)!r}: {_explain_central(found)}")
            offset += len(entry.local_header) + entry.nbytes
        end = _directory(self._entries, start)[-_END.size :]
        if self._read(len(end)) != end or self.remaining or self._file.read(1):
            raise self.error("expected the end of the zip file after its last entry, got other bytes")

    def _read(self, nbytes: int) -> bytes:
        """Read exactly so many bytes."""
        unread, self._unread = self._unread, b""
        try:
            data = self._file.read(nbytes - len(unread))
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from error
        self.digest.update(data)
        self._position += len(data)
        if len(unread) + len(data) < nbytes:
            raise self.error(f"expected a whole pack, got a file that ends after {self._position:,} bytes")
        return unread + data

    def error(self, problem: str) -> PackError:
        """Return the error for a problem, with the file's name and advice."""
        return PackError(f"{self._path}: {problem}; {_MAKE_AGAIN}")


def _explain_central(found: bytes) -> str:
    """Say how an entry of the directory differs from the one that its local header asks for."""
    fields = _CENTRAL.unpack_from(found)
    mode = fields[15] >> 16
    if fields[0] != _CENTRAL_MARK:
        return "expected the entry in the directory, got other bytes"
    if fields[3] & _ENCRYPTED:
        return "expected an entry that is not encrypted"
    if fields[4] != _STORED:
        return "expected an entry without compression"
    if stat.S_IFMT(mode) != stat.S_IFREG:
        kind = "a link" if stat.S_ISLNK(mode) else "a directory" if stat.S_ISDIR(mode) else "a device or another kind"
        return f"expected a file, got {kind}"
    return "expected the same entry in the directory, got another name, size, mode, time or place"
