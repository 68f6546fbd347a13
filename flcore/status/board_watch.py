"""What draws or writes the state of a board, on a thread of its own."""

import threading
import time
from collections.abc import Callable
from typing import Self

from flcore.status.board import StatusBoard

MAX_SHARE = 0.005
"""The largest share of its thread's time that showing takes: a state of many clients is shown less often."""

CLOSE_TIMEOUT_S = 2.0
"""How long the end of a block waits for the thread, such as for a disk that takes no file."""


class BoardWatch:
    """Shows a board after its changes, while a block lasts. A context manager.

    Nothing is shown while nothing happens. The last state is shown at the end of the block.

    Args:
        board: The board.
        show: Shows the state. Called on the thread; must not raise.
        interval_s: The shortest time between two calls.
        name: The name of what shows, for the thread.
    """

    def __init__(self, board: StatusBoard, show: Callable[[], None], interval_s: float, name: str) -> None:
        self._board, self._show, self._interval_s = board, show, interval_s
        self._version, self._closing = board.version, threading.Event()
        self._thread = threading.Thread(target=self._show_changes, name=f"flcore-{name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._board.wake()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _show_changes(self) -> None:
        version = self._version
        while not self._closing.is_set():
            version = self._board.wait(version)
            if self._closing.is_set():
                break
            started = time.thread_time()
            self._show()
            self._closing.wait(max(self._interval_s, (time.thread_time() - started) / MAX_SHARE))
        self._show()
