"""Settings and checks of a process: malloc, open files, signals, threads and forks.

The settings are for flcore's own programs. A library must not change the settings of its process.
"""

import ctypes
import os
import resource
import signal
import sys
from _thread import start_new_thread
from functools import cache

from flcore.errors import FlcoreError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of `mallopt` in glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX."""

MMAP_THRESHOLD_BYTES = 32 << 20
"""Larger blocks are mapped one by one and returned to the system when freed. 32 MiB is glibc's highest threshold."""


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for reuse.

    On virtual machines, writing to a fresh page costs ten times as much as writing to one that was used before.
    All threads share one arena: one thread allocates a piece and another frees it, which would fragment arenas per
    thread. Does nothing if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit. Each connection of a server takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def exit_on_sigterm() -> None:
    """Make SIGTERM end the process in order, as Ctrl-C does: clients are notified and temporary files removed.

    Further SIGTERMs during the shutdown are ignored. A signal that arrives in a finalizer raises there, and Python
    drops the exception; such a signal is sent again.
    """
    default_hook = sys.unraisablehook

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, SystemExit):
            signal.signal(signal.SIGTERM, end)
            # By another thread: Python would handle it inside this hook otherwise, and drop the exception again.
            start_new_thread(os.kill, (os.getpid(), signal.SIGTERM))
        elif isinstance(dropped.exc_value, KeyboardInterrupt):
            start_new_thread(os.kill, (os.getpid(), signal.SIGINT))
        else:
            default_hook(dropped)

    sys.unraisablehook = send_again
    signal.signal(signal.SIGTERM, end)


PATCHING_LIBRARIES = {
    "gevent": ("gevent.monkey", "is_module_patched", ("threading", "queue", "subprocess", "select", "os")),
    "eventlet": ("eventlet.patcher", "is_monkey_patched", ("thread", "subprocess", "select", "os")),
}
"""For each library that replaces Python's modules: its module and function that tell which, and those flcore needs."""


def require_native_threads(what: str) -> None:
    """Raise `FlcoreError` if a library such as gevent has replaced threads, because some calls would then never end."""
    for library, (module, is_patched, needed) in PATCHING_LIBRARIES.items():
        if module not in sys.modules:
            continue
        patched = [name for name in needed if getattr(sys.modules[module], is_patched)(name)]
        if patched:
            raise FlcoreError(
                f"{what} needs Python's own {', '.join(patched)}, which {library} has replaced in this process: "
                "call it in another process (`flcore run`), or do not patch them"
            )


@cache
def _grpc_process() -> int:
    """Return the process that first used gRPC. The cache is inherited by forks, so they see their parent's."""
    return os.getpid()


def require_own_grpc(what: str) -> None:
    """Raise `FlcoreError` in a fork of a process that called this: gRPC's threads do not exist in the fork."""
    if _grpc_process() != os.getpid():
        raise FlcoreError(
            f"{what} cannot use gRPC in process {os.getpid()}, a fork of process {_grpc_process()}, which uses it: its "
            'threads do not survive a fork. Use multiprocessing.get_context("spawn"), or pass workers=0'
        )
