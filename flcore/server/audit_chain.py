"""The format of an audit log: one entry per line, as JSON, chained by SHA-256.

    {"previous":"<digest>","sequence":2,"time":"2026-01-31T12:00:00.000Z","event":"join",...,"sha256":"<digest>"}

`previous` is the digest of the entry before (64 zeros in the first), `sha256` the digest of the line's bytes before
`,"sha256"` and a closing brace. So each digest covers all lines up to its own. Lines are ASCII, without spaces.

A crash may leave the last line unfinished: a torn tail. It stays in the file. When the log is opened again, a `torn`
entry follows it that has its length and its digest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from flcore.errors import HistoryError
from flcore.regular_file import open_regular
from flcore.text import printable

AUDIT_FILE = "audit.jsonl"
NO_DIGEST = "0" * 64
"""The `previous` of the first entry."""

MAX_LINE_BYTES = 16 << 10
MAX_TORN_BYTES = 2 * MAX_LINE_BYTES
"""How much a crash leaves unfinished at most: one line, and one more if the next start crashed in its first write."""

TORN = "torn"
DIGEST_KEY = b',"sha256":"'
ENTRY = re.compile(
    rb'(\{"previous":"([0-9a-f]{64})","sequence":([1-9][0-9]{0,18}),"time":"([0-9TZ:.-]{1,40})","event":"([a-z-]{1,40})"'
    rb'[\x20-\x7e]*),"sha256":"([0-9a-f]{64})"\}\n'
)


class Entry(NamedTuple):
    """One valid line of an audit log."""

    previous: str
    sequence: int
    time: str
    event: str
    digest: str


@dataclass(frozen=True)
class Fault:
    """The first line that does not continue the chain: its number, and what was expected and found there."""

    line: int
    expected: str
    got: str


@dataclass
class Verification:
    """The state of an audit log.

    Attributes:
        entries: The number of entries that form a chain from the first line on.
        first: The time of the first of them.
        last: The time of the last of them.
        head: The digest of the last of them; it covers all of them.
        torn_tails: How often the log was opened again after a crash that had left a torn tail.
        torn_bytes: The length of the torn tail at the end of the file.
        has_ended: Whether the last entry is the end of a run. If not: the server runs, was killed, or lines are gone.
        entries_after_head: How many entries follow the expected head. None: it was not found, or none is expected.
        fault: The first fault. None: there is none.
    """

    entries: int = 0
    first: str = ""
    last: str = ""
    head: str = NO_DIGEST
    torn_tails: int = 0
    torn_bytes: int = 0
    has_ended: bool = False
    entries_after_head: int | None = None
    fault: Fault | None = None


def seal(previous: str, sequence: int, time: str, event: str, fields: Mapping[str, object]) -> tuple[bytes, str]:
    """Return an entry's line and its digest.

    >>> line, digest = seal(NO_DIGEST, 1, "2026-01-31T12:00:00.000Z", "join", {"client": "a"})
    >>> line.endswith(f',"event":"join","client":"a","sha256":"{digest}"}}\\n'.encode())
    True
    """
    entry = {"previous": previous, "sequence": sequence, "time": time, "event": event, **fields}
    body = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + DIGEST_KEY + digest.encode("ascii") + b'"}\n', digest


def check_line(line: bytes, number: int) -> Entry | Fault:
    """Return the entry of a line, or the fault if it is not one, or if its digest is wrong."""
    match = ENTRY.fullmatch(line)
    if match is None:
        return Fault(number, "an entry on one line", _quote(line))
    body, previous, sequence, time, event, stated = match.groups()
    digest = hashlib.sha256(body + b"}").hexdigest()
    if digest.encode("ascii") != stated:
        return Fault(number, f"sha256 {stated.decode()}, as the line says", f"{digest} over its bytes")
    return Entry(previous.decode(), int(sequence), time.decode(), event.decode(), digest)


def verify(path: Path, head: str | None = None) -> Verification:
    """Read an audit log from the first line, and stop at the first fault. The memory is constant.

    Args:
        path: The log's file.
        head: A digest that an earlier verification has returned as its head; the log must have that entry. Without it,
            whole lines that were cut off at the end are not noticed. Default: None.

    Returns:
        The entries that form a chain, and the first fault.

    Raises:
        HistoryError: There is no such file.
    """
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise HistoryError(
            f"expected the directory of a run, which holds {AUDIT_FILE}, got {path.parent}; see the run's --out"
        ) from None
    with file:
        return verify_lines(file, head)


def verify_lines(file: BinaryIO, head: str | None = None) -> Verification:
    """Read the lines of an audit log (see `verify`)."""
    verifier = _Verifier(head)
    verifier.read(file)
    return verifier.result


class _Verifier:
    """Reads lines. Lines that are no entries are collected until a `torn` entry says that a crash left them."""

    def __init__(self, head: str | None) -> None:
        self.result = Verification()
        self._head, self._line = head, 0
        self._torn = bytearray()
        self._fault: Fault | None = None

    def read(self, file: BinaryIO) -> None:
        """Read the whole file, or up to the first fault."""
        result = self.result
        while result.fault is None and (line := file.readline(MAX_LINE_BYTES + 1)):
            self._line += 1
            if line.endswith(b"\n"):
                self._take_line(line)
            else:
                self._take_tail(line)
        result.fault = result.fault or self._fault
        if result.fault is None and not result.entries:
            result.fault = Fault(1, "an entry", f"{result.torn_bytes} bytes" if result.torn_bytes else "an empty file")
        if result.fault is None and self._head is not None and result.entries_after_head is None:
            result.fault = Fault(
                self._line, f"an entry with sha256 {self._head}", "the end of the log: entries were cut off or replaced"
            )

    def _take_line(self, line: bytes) -> None:
        entry = self._check(line)
        if isinstance(entry, Fault):
            self._fault = self._fault or entry
            self._torn += line
            if len(self._torn) > MAX_TORN_BYTES:
                self.result.fault = self._fault
        elif entry.event == TORN or self._fault:
            self._take_torn_entry(entry, line)
        else:
            self._add(entry)

    def _take_tail(self, line: bytes) -> None:
        """Take the last line, which has no line end: an entry that lacks no more than that, a torn tail, or a fault."""
        entry = self._check(line + b"\n")
        if not isinstance(entry, Fault):
            self._take_line(line + b"\n")
        elif self._fault is None and _is_torn(line, self.result.head, self.result.entries + 1):
            self.result.torn_bytes = len(line)
        else:
            self._fault = self._fault or entry

    def _take_torn_entry(self, entry: Entry, line: bytes) -> None:
        """Compare the bytes of a torn tail with the entry that follows it."""
        if entry.event != TORN:
            self.result.fault = self._fault
            return
        torn, stated = bytes(self._torn[:-1]), _read_torn(line)
        if stated != describe_torn(torn):
            got = f"{len(torn)} bytes, or others"
            self.result.fault = self._fault or Fault(self._line, f"before it, a torn line of {stated[0]} bytes", got)
            return
        self._fault = None
        self._torn.clear()
        self.result.torn_tails += 1
        self._add(entry)

    def _check(self, line: bytes) -> Entry | Fault:
        """Return the entry of a line that continues the chain, or the fault."""
        entry, sequence = check_line(line, self._line), self.result.entries + 1
        if isinstance(entry, Fault):
            return entry
        if entry.sequence != sequence:
            return Fault(self._line, f"entry {sequence}", f"entry {entry.sequence}")
        if entry.previous != self.result.head:
            return Fault(self._line, f"previous {self.result.head}", entry.previous)
        return entry

    def _add(self, entry: Entry) -> None:
        result = self.result
        result.entries, result.head, result.last = entry.sequence, entry.digest, entry.time
        result.first = result.first or entry.time
        result.has_ended = entry.event == "end"
        if result.entries_after_head is not None:
            result.entries_after_head += 1
        elif entry.digest == self._head:
            result.entries_after_head = 0


def describe_torn(torn: bytes) -> tuple[int, str]:
    """Return the fields of a `torn` entry: the length and the digest of what a crash left."""
    return len(torn), hashlib.sha256(torn).hexdigest()


def _read_torn(line: bytes) -> tuple[object, object]:
    """Return what a `torn` entry says."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # its digest is right all the same: a forged entry
        return None, None
    return fields.get("torn_bytes"), fields.get("torn_sha256")


def _is_torn(tail: bytes, previous: str, sequence: int) -> bool:
    """Whether a tail is the beginning of the next entry: a write that was cut off leaves nothing else."""
    start = f'{{"previous":"{previous}","sequence":{sequence},'.encode()
    if len(tail) > MAX_LINE_BYTES or tail[: len(start)] != start[: len(tail)]:
        return False
    body, key, digest = tail.rpartition(DIGEST_KEY)
    if key:
        return (hashlib.sha256(body + b"}").hexdigest().encode() + b'"}').startswith(digest)
    return all(0x20 <= byte < 0x7F for byte in tail)


def _quote(line: bytes) -> str:
    shown = printable(line[:64].decode("utf-8", "backslashreplace"), 80)
    return f"{len(line)} bytes that are not one: {shown!r}"
