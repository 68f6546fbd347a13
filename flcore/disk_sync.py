"""Files and names of directories that are on the disk when a function returns."""

import os
from pathlib import Path

from flcore.disk_errors import named


def create_directory(directory: Path, mode: int = 0o777) -> None:
    """Create a directory and its missing parents, and flush their names to disk. An existing one is left as it is.

    `mode` is that of the directory, not of its parents.

    A file in a directory is lost in a power failure if the directory's own name is, whatever of the file was flushed.
    """
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode, parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


def sync_file(path: Path) -> None:
    """Flush the data of a file to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with named(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
