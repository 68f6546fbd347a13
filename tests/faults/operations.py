"""The operations that a program does on a disk, in order: the log from which images after a power loss are made.

Files and directories are numbered like inodes. A number is never used twice, and a file keeps its number when it is
renamed or linked, so that data and names are lost independently of each other.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NameChange:
    """A change of names, which happens as a whole: create, link, unlink, mkdir, rmdir, rename.

    Attributes:
        changes: For each name, its directory, the name, and the file that has it from now on; None removes the name.
        is_directory: Whether the name is that of a new directory.
        text: The operation for error messages.
    """

    changes: tuple[tuple[int, str, int | None], ...]
    is_directory: bool = False
    text: str = ""


@dataclass(frozen=True)
class Write:
    """Bytes written to a file."""

    file: int
    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Resize:
    """A file gets another size: it is truncated, or extended by zeros."""

    file: int
    size: int


@dataclass(frozen=True)
class Sync:
    """An fsync of a file or of a directory that has returned. `path` is its name at this time, for error messages."""

    inode: int
    path: str


@dataclass(frozen=True)
class Mark:
    """A fact that the program's caller knows from now on, such as a receipt. The disk does not change."""

    name: str
    facts: dict[str, Any] = field(repr=False)


Operation = NameChange | Write | Resize | Sync | Mark
