"""Notices of errors in a client's own code, in full, for the owner of the code. They are not sent to the server."""

import logging
import threading
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)

MAX_TRACEBACK_CHARACTERS = 20_000

Notify = Callable[[str, str], None]
"""Receives a notice: its kind, which is the same for repetitions, and its text."""


class NoticeLogger:
    """Logs the first notice of each kind: a client that fails in the same line in every round logs one traceback."""

    def __init__(self) -> None:
        self._logged_kinds: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, kind: str, text: str) -> None:
        """Log a notice unless one of its kind was logged before. May be called from any thread."""
        with self._lock:
            is_known = kind in self._logged_kinds
            self._logged_kinds.add(kind)
        if not is_known:
            logger.error("%s", text)


def traceback_notice(error: BaseException, what: str) -> tuple[str, str]:
    """Return the notice of an exception that a client's code raised. Its kind is the places in the traceback.

    Args:
        error: The exception.
        what: The first line of the notice.

    Returns:
        The kind and the text.
    """
    # The first frame is flcore's own, which called the client's code.
    client_frames = error.__traceback__ and error.__traceback__.tb_next
    lines = traceback.format_exception(type(error), error, client_frames or error.__traceback__)
    if lines[0].startswith("Traceback "):
        lines = lines[1:]
    kind = "\n".join(line.partition("\n")[0] for line in lines if line.startswith("  File "))
    text = "".join(lines).rstrip()
    if len(text) > MAX_TRACEBACK_CHARACTERS:
        half = MAX_TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n  ...\n{text[-half:]}"
    return kind, f"{what} (most recent call last):\n{text}"
