"""Where updates are kept until they are folded: in memory as long as there is room, on disk beyond it."""

import shutil
import tempfile
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from itertools import count
from pathlib import Path


class Staging:
    """The room that all staged updates of a server share, and the directory of those that find none.

    `memory_bytes` None sets no bound. `directory` is made when it is first needed, and removed with this object;
    without one it is made among the system's temporary files. Methods may be called from any thread.
    """

    def __init__(self, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self._limit, self._free = memory_bytes, memory_bytes or 0
        self._directory = directory
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Future[bool]]] = deque()
        self._numbers = count(1)
        self._made: Path | None = None
        self._remove: weakref.finalize[..., Staging] | None = None

    def request(self, nbytes: int, *, may_wait: bool) -> "Future[bool]":
        """Ask for room; the result is whether there is. With `may_wait` it is given as others let go, in turn.

        Whoever cancels the future gets none.
        """
        future: Future[bool] = Future()
        with self._lock:
            if self._limit is None:
                future.set_result(True)
            elif nbytes > self._limit or not (may_wait or (nbytes <= self._free and not self._waiting)):
                future.set_result(False)
            else:
                self._waiting.append((nbytes, future))
        self._share_out()
        return future

    def release(self, nbytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._free += nbytes
        self._share_out()

    def folder(self) -> Path:
        """Make a new directory for one update."""
        with self._lock:
            if self._made is None:
                if self._directory is None:
                    self._made = Path(tempfile.mkdtemp(prefix="flcore-staging-"))
                else:
                    self._made = self._directory
                    shutil.rmtree(self._made, ignore_errors=True)  # what a server that was killed left behind
                    self._made.mkdir(parents=True)
                self._remove = weakref.finalize(self, shutil.rmtree, self._made, ignore_errors=True)
            folder = self._made / str(next(self._numbers))
        folder.mkdir()
        return folder

    def close(self) -> None:
        """Remove the directory, with all that is in it."""
        if self._remove is not None:
            self._remove()

    def _share_out(self) -> None:
        granted: list[Future[bool]] = []
        with self._lock:
            while self._waiting:
                nbytes, future = self._waiting[0]
                if not future.cancelled():
                    if nbytes > self._free:
                        break
                    if future.set_running_or_notify_cancel():
                        self._free -= nbytes
                        granted.append(future)
                self._waiting.popleft()
        for future in granted:  # outside of the lock: what waits for it may come back here
            future.set_result(True)
