"""The lock of a directory that one process owns at a time: a file in it, which ends with the process.

The text of the file names the owner, for the error of another process.
"""

import fcntl
import os
import socket

MAX_OWNER_BYTES = 200


def try_lock(file: int) -> str:
    """Lock an open file, and return "" if it is this process's now, else the text about its owner.

    Raises:
        OSError: The file cannot be locked, such as on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(file, MAX_OWNER_BYTES, 0).decode("utf-8", "replace").strip() or "another process"
    return ""


def name_owner(file: int, more: str = "") -> None:
    """Write into a locked file which process owns it, and `more` about that."""
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}{more}\n".encode(), 0)
