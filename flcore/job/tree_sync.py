"""Flushing a directory with all its files to disk."""

import ctypes
import os
import sys
from pathlib import Path

from flcore.model.atomic_replace import sync_directory, sync_file

FEW_ENTRIES = 64
"""Up to so many files and folders, each is flushed alone, and nothing that others write is waited for."""


def sync_tree(directory: Path) -> None:
    """Flush a directory, and all files and folders in it, to disk.

    One flush takes milliseconds, so a tree of thousands of files would take minutes. The file system as a whole is
    flushed then, where the system can do that.

    Raises:
        OSError: The disk has failed.
    """
    entries = list(directory.rglob("*"))
    if len(entries) > FEW_ENTRIES and sys.platform == "linux":
        _sync_file_system(directory)
        return
    for path in entries:
        if path.is_dir():
            sync_directory(path)
        else:
            sync_file(path)
    sync_directory(directory)


def _sync_file_system(directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(directory))
    finally:
        os.close(descriptor)
