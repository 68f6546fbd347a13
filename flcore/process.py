"""Settings of a process that moves large payloads, for programs that are nothing else: a server, a client, a worker."""

import ctypes
import resource
import signal
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of `mallopt`'s parameters, in glibc's malloc.h."""

LARGEST = 32 << 20
"""Bytes: what is larger is mapped by itself, and given back when it is freed; glibc allows no higher bound."""


def keep_freed_memory() -> None:
    """Have freed memory used again, and not given back and taken anew: fresh pages cost ten times a copy into old ones.

    Also, all threads share it, so that pieces that one thread receives and another lets go leave no holes. Does nothing
    where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, LARGEST)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def open_as_many_files_as_allowed() -> None:
    """Raise the process's limit of open files as far as it may itself: each connection of a server takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_when_told() -> None:
    """Have SIGTERM end this process as Ctrl-C does: clients are told, and files that are of no more use removed.

    Another SIGTERM while it ends changes nothing.
    """

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
