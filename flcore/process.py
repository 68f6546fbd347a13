"""What a process must be to move large payloads, and how programs that do nothing else set theirs."""

import ctypes
import os
import resource
import signal
import sys
from _thread import start_new_thread
from functools import cache

from flcore.errors import FlcoreError

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of `mallopt`'s parameters, in glibc's malloc.h."""

MMAP_THRESHOLD_BYTES = 32 << 20
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
    mallopt(_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def raise_open_file_limit() -> None:
    """Raise the process's limit of open files as far as it may itself: each connection of a server takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def exit_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does: clients are told, and files that are of no more use removed.

    Another SIGTERM while it ends changes nothing. Either signal may come in the middle of a finalizer, where Python
    drops what it raises; then it is sent again.
    """
    usual = sys.unraisablehook

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signal.SIGTERM)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, SystemExit):
            signal.signal(signal.SIGTERM, end)
            start_new_thread(os.kill, (os.getpid(), signal.SIGTERM))
        elif isinstance(dropped.exc_value, KeyboardInterrupt):
            start_new_thread(os.kill, (os.getpid(), signal.SIGINT))
        else:
            usual(dropped)

    sys.unraisablehook = send_again
    signal.signal(signal.SIGTERM, end)


PATCHING_LIBRARIES = {
    "gevent": ("gevent.monkey", "is_module_patched", ("threading", "queue", "subprocess", "select", "os")),
    "eventlet": ("eventlet.patcher", "is_monkey_patched", ("thread", "subprocess", "select", "os")),
}
"""Libraries that replace Python's modules: the module and the function that tell which, and what must be Python's."""


def require_native_threads(what: str) -> None:
    """Raise `FlcoreError` where a library has replaced the system's threads, in which some calls would never end."""
    for library, (module, is_patched, needed) in PATCHING_LIBRARIES.items():
        if module not in sys.modules:
            continue
        patched = [name for name in needed if getattr(sys.modules[module], is_patched)(name)]
        if patched:
            raise FlcoreError(
                f"{what} needs Python's own {', '.join(patched)}, and {library} has replaced them in this process: "
                "call it in a process of its own (`flcore run`), or do not patch them"
            )


@cache
def _grpc_process() -> int:
    return os.getpid()


def require_own_grpc(what: str) -> None:
    """Raise `FlcoreError` in a process that was forked from one that called this: gRPC's threads were left behind."""
    if _grpc_process() != os.getpid():
        raise FlcoreError(
            f"{what} cannot use gRPC in process {os.getpid()}, a fork of process {_grpc_process()}, which uses it: its "
            'threads do not survive a fork. Use multiprocessing.get_context("spawn"), or pass workers=0'
        )
