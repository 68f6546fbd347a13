"""What each site has done in a job: the rounds that it has answered, and why it failed last."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flcore.text import printable

MAX_REASON_CHARACTERS = 300
"""The longest reason that is kept of a site."""

RECEIPT = b'"event":"receipt"'
"""What a line of a run's audit log has if it is about an answer."""


class SitePart(NamedTuple):
    """A site's part: the number of rounds that it has answered, and the reason of a failure after its last answer."""

    rounds: int = 0
    reason: str = ""


class SiteParts:
    """Counts the answers of a running job. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, SitePart] = {}
        self._last_round: dict[str, int] = {}

    def joined(self, client: str) -> None:
        """A site's process has joined the job."""
        with self._lock:
            self._parts.setdefault(client, SitePart())

    def answered(self, client: str, round_: int) -> None:
        """A site's answer is committed. A round in which a site answers several tasks counts once."""
        with self._lock:
            is_new = round_ > self._last_round.get(client, 0)
            self._last_round[client] = max(round_, self._last_round.get(client, 0))
            self._parts[client] = SitePart(self._parts.get(client, SitePart()).rounds + is_new)

    def failed(self, client: str, reason: str) -> None:
        """A site has failed in a task."""
        with self._lock:
            part = self._parts.get(client, SitePart())
            self._parts[client] = part._replace(reason=printable(reason, MAX_REASON_CHARACTERS))

    def load(self, audit_log: Path) -> None:
        """Count the answers of an earlier process, which the run's audit log has. Does nothing without a log."""
        try:
            file = audit_log.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                if RECEIPT in line:
                    try:
                        entry = json.loads(line)
                    except ValueError:  # a crash has cut the last line
                        continue
                    self.answered(str(entry["client"]), int(entry["round"]))

    def all(self) -> Mapping[str, SitePart]:
        """Return the part of each site that has joined."""
        with self._lock:
            return dict(self._parts)


def with_failure(text: str, part: SitePart | None) -> str:
    """Add why a site's last task has failed to what is said of the site.

    >>> with_failure("away", SitePart(3, "train: its connection was lost"))
    'away; failed last: train: its connection was lost'
    """
    return text if part is None or not part.reason else f"{text}; failed last: {part.reason}"


def part_text(part: SitePart | None, refusal: str) -> str:
    """Say what a site has done in a job that is over.

    >>> part_text(SitePart(3, "train: no data"), "")
    'took part; failed last: train: no data'
    >>> part_text(None, "")
    'took no part'
    """
    words = [] if part is None else [with_failure("took part", part)]
    if refusal:
        words.append(f"refused: {refusal}")
    return "; ".join(words) or "took no part"
