"""The descendants of this process: their peak memory, and their termination."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SUBREAPER = 36
"""Linux' `PR_SET_CHILD_SUBREAPER`: an orphaned descendant becomes this process's child, in any session."""

SAMPLE_INTERVAL_S = 0.1


class ProcessTree:
    """A context that samples the peak memory of every descendant. At its end, all descendants are killed."""

    def __init__(self) -> None:
        self._peaks: dict[int, int] = {}
        self._commands: dict[int, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become the reaper of descendants")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._stopping.set()
        self._thread.join()

    def kill(self) -> None:
        """Kill all descendants now, including indirect ones."""
        while living := descendants():
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.05)

    def peak_bytes(self, word: str) -> int:
        """Return the largest peak so far among descendants with `word` in their command line."""
        self._read()
        return max((peak for process, peak in self._peaks.items() if word in self._commands[process]), default=0)

    def _watch(self) -> None:
        while not self._stopping.wait(SAMPLE_INTERVAL_S):
            self._read()

    def _read(self) -> None:
        for process in descendants():
            # The process may have ended in the meantime; after an `exec`, the next sample has its new command.
            with suppress(OSError, KeyError):
                peak = int(_status(process)["VmHWM"].split()[0]) * 1024
                command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                self._commands[process] = command
                self._peaks[process] = peak


def descendants() -> list[int]:
    """Return the process ids of all descendants, zombies included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, KeyError):
                children.setdefault(int(_status(int(entry.name))["PPid"]), []).append(int(entry.name))
    found: list[int] = []
    ahead = [os.getpid()]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def _status(process: int) -> Mapping[str, str]:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
