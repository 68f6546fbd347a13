"""What a disk may have after a power loss: images of a recorded log.

The model has the guarantees of POSIX on a journaling file system, and no more:

- The data of a file are on the disk once an fsync of the file has returned. Writes and sizes since then are there or
  not, each by itself: all, none, a prefix that may end in the middle of a write, any subset of 4 KiB pages, or the new
  size with zeros.
- A name is on the disk once an fsync of its directory has returned. Changes of names since then are there or not: all,
  none, a prefix in order, or any subset. One change is atomic (a rename never leaves both names, or neither).
- An fsync of a file does not sync its name, and one of a directory does not sync its files.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.disk_recorder import ROOT_INODE, DiskRecorder
from tests.faults.operations import Mark, NameChange, Operation, Resize, Sync, Write

PAGE_BYTES = 4096

Content = Mapping[str, bytes | None]
"""The content of an image: files by path, and None for a directory. A directory comes before what is in it."""


class Image(NamedTuple):
    """A state of the disk after a power loss.

    Attributes:
        position: The number of operations that were done before.
        variant: Which of the states at this position it is: "all", "synced", or a number that seeds the choices.
        content: The files and directories.
        marks: What the program's caller knew when the power went.
    """

    position: int
    variant: str
    content: Content
    marks: tuple[Mark, ...]

    def write(self, directory: Path) -> None:
        """Write the image into an empty directory."""
        for path, data in self.content.items():
            if data is None:
                (directory / path).mkdir()
            else:
                (directory / path).write_bytes(data)


@dataclass
class _File:
    synced: bytes = b""
    pending: list[Write | Resize] = field(default_factory=list)


class Disk:
    """A disk on which the operations of a log are done, one after the other."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._directories: dict[int, dict[str, int]] = {ROOT_INODE: {}}
        self._pending: list[NameChange] = []

    def do(self, operation: Operation) -> None:
        """Do the next operation."""
        match operation:
            case NameChange(changes, is_directory):
                self._pending.append(operation)
                for _, _, inode in changes:
                    if inode is not None and is_directory:
                        self._directories.setdefault(inode, {})
                    elif inode is not None and inode not in self._directories:
                        self._files.setdefault(inode, _File())
            case Write(file) | Resize(file):
                self._files.setdefault(file, _File()).pending.append(operation)
            case Sync(inode):
                self._sync(inode)
            case Mark():
                pass

    def all_content(self) -> Content:
        """Return the content if nothing is lost."""
        data = {inode: _applied(file.synced, file.pending) for inode, file in self._files.items()}
        return self._tree(self._pending, data)

    def synced_content(self) -> Content:
        """Return the content if everything is lost that was not synced."""
        return self._tree([], {inode: file.synced for inode, file in self._files.items()})

    def torn_content(self, choices: random.Random) -> Content:
        """Return the content if some of what was not synced is lost."""
        names, data = _some(self._pending, choices), dict[int, bytes]()
        for inode, file in self._files.items():
            data[inode] = _torn(file, choices) if file.pending else file.synced
        return self._tree(names, data)

    def _sync(self, inode: int) -> None:
        if inode not in self._directories:
            file = self._files[inode]
            file.synced, file.pending = _applied(file.synced, file.pending), []
            return
        synced = [change for change in self._pending if any(place == inode for place, _, _ in change.changes)]
        self._pending = [change for change in self._pending if change not in synced]
        _rename(self._directories, synced)

    def inodes(self) -> dict[str, int]:
        """Return the file or directory of each name if nothing is lost. A directory comes before what is in it."""
        return self._walk(self._pending)

    def _tree(self, names: Sequence[NameChange], data: dict[int, bytes]) -> Content:
        return {path: data.get(inode) for path, inode in self._walk(names).items()}

    def _walk(self, names: Sequence[NameChange]) -> dict[str, int]:
        directories = {inode: dict(entries) for inode, entries in self._directories.items()}
        _rename(directories, names)
        found: dict[str, int] = {}

        def walk(inode: int, path: str) -> None:
            for name, child in sorted(directories[inode].items()):
                found[path + name] = child
                if child in directories:
                    walk(child, f"{path}{name}/")

        walk(ROOT_INODE, "")
        return found


def images(log: Sequence[Operation], torn: int, seed: int, first: int = 0) -> Iterator[Image]:
    """Return the states in which a power loss may leave the disk, at each position of a log.

    Args:
        log: The operations.
        torn: The number of torn states at each position, beside those where all or nothing is lost.
        seed: Seeds the choices.
        first: The first position that has images. Default: 0, the beginning.
    """
    disk, marks = Disk(), list[Mark]()
    for position in range(len(log) + 1):
        if position and isinstance(operation := log[position - 1], Mark):
            marks.append(operation)
        elif position:
            disk.do(log[position - 1])
        if position < first:
            continue
        yield Image(position, "all", disk.all_content(), tuple(marks))
        yield Image(position, "synced", disk.synced_content(), tuple(marks))
        for number in range(torn):
            choices = random.Random(f"{seed} {position} {number}")
            yield Image(position, f"torn {number}", disk.torn_content(choices), tuple(marks))


def require_complete(recorder: DiskRecorder) -> None:
    """Raise `AssertionError` unless the log leads to the content that the recorded directory has now."""
    disk = Disk()
    for operation in recorder.log:
        disk.do(operation)
    expected = disk.all_content()
    found = {
        str(path.relative_to(recorder.root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(recorder.root.rglob("*"))
        if not path.name.endswith("-shm")  # SQLite's index of its log in shared memory; made again after a power loss
    }
    differing = sorted(path for path in expected.keys() | found.keys() if expected.get(path, "") != found.get(path, ""))
    assert not differing, f"the recorder has missed changes of {', '.join(differing)}"


def _rename(directories: dict[int, dict[str, int]], changes: Sequence[NameChange]) -> None:
    for change in changes:
        for directory, name, inode in change.changes:
            if inode is None:
                directories[directory].pop(name, None)
            else:
                directories[directory][name] = inode


def _applied(content: bytes, operations: Sequence[Write | Resize]) -> bytes:
    if not operations:
        return content
    data = bytearray(content)
    for operation in operations:
        match operation:
            case Resize(_, size):
                data[size:] = bytes(max(0, size - len(data)))
            case Write(_, offset, written):
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(written)] = written
    return bytes(data)


def _some(operations: Sequence[Any], choices: random.Random) -> list[Any]:
    """Return all, none, a prefix or any subset of operations, in order."""
    kind = choices.randrange(4)
    if kind < 2:
        return list(operations) if kind else []
    if kind == 2:
        return list(operations[: choices.randint(0, len(operations))])
    return [operation for operation in operations if choices.random() < 0.5]


def _torn(file: _File, choices: random.Random) -> bytes:
    """Return what is left of a file: see the module's first lines."""
    kind = choices.randrange(5)
    if kind == 0:
        return _applied(file.synced, _some(file.pending, choices))
    if kind == 1:  # a prefix, which ends in the middle of a write
        stop = choices.randrange(len(file.pending))
        operations, last = file.pending[:stop], file.pending[stop]
        if isinstance(last, Write):
            cut = choices.randint(0, len(last.data))
            operations = [*operations, Write(last.file, last.offset, last.data[:cut])]
        return _applied(file.synced, operations)
    whole = _applied(file.synced, file.pending)
    data = bytearray(_applied(file.synced, [Resize(0, len(whole))]))
    if kind == 2:  # the new size, and zeros
        return bytes(data)
    share = choices.choice((0.1, 0.5, 0.9))
    for page in range(0, len(whole), PAGE_BYTES):
        if choices.random() < share:
            data[page : page + PAGE_BYTES] = whole[page : page + PAGE_BYTES]
    if kind == 3:
        return bytes(data)
    return bytes(data[: choices.randint(min(len(file.synced), len(data)), len(data))])
