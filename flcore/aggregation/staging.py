"""Where updates are kept until they are folded: in memory as long as there is room, on disk beyond it."""

import shutil
import tempfile
import threading
import weakref
from itertools import count
from pathlib import Path

from flcore.aggregation.room import Room


class Staging:
    """The room that all staged updates of a server share, and the directory of those that find none.

    `memory_bytes` None sets no bound. `directory` is made when it is first needed, and removed with this object;
    without one it is made among the system's temporary files. Methods may be called from any thread.
    """

    def __init__(self, memory_bytes: int | None = None, directory: Path | None = None) -> None:
        self.room = Room(memory_bytes)
        self._directory = directory
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._made: Path | None = None
        self._remove: weakref.finalize[..., Staging] | None = None

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
