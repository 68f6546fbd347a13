"""What a client's own code did wrong, told to its owner in full. Nothing of it is sent to anybody."""

import logging
import threading
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

MAX_TRACEBACK_CHARACTERS = 20_000

Notify = Callable[[str, str], None]
"""Takes a notice: its kind, by which it is known again, and its text."""


class NoticeLogger:
    """Logs notices, each kind once: a client that fails in the same line in each round is told so in the first."""

    def __init__(self) -> None:
        self._logged_kinds: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, kind: str, text: str) -> None:
        """Log a notice, unless one of its kind was logged. May be called from any thread."""
        with self._lock:
            is_known = kind in self._logged_kinds
            self._logged_kinds.add(kind)
        if not is_known:
            logger.error("%s", text)


def traceback_notice(error: BaseException, what: str) -> tuple[str, str]:
    """Return the notice of an exception that a client's code raised: where it was raised is its kind.

    The traceback begins at the client's code, below the frame that called it.
    """
    called = error.__traceback__ and error.__traceback__.tb_next
    lines = traceback.format_exception(type(error), error, called or error.__traceback__)
    if lines[0].startswith("Traceback "):
        lines = lines[1:]
    kind = "\n".join(line.partition("\n")[0] for line in lines if line.startswith("  File "))
    told = "".join(lines).rstrip()
    if len(told) > MAX_TRACEBACK_CHARACTERS:
        half = MAX_TRACEBACK_CHARACTERS // 2
        told = f"{told[:half]}\n  ...\n{told[-half:]}"
    return kind, f"{what} (most recent call last):\n{told}"
