"""How a client waits for a server that is away: how long until it tries again, what it says, when it gives up."""

import random
from collections.abc import Callable

FIRST_DELAY_S = 0.2
MAX_DELAY_S = 3.2
"""The longest delay, before the jitter. A client is back within the server's grace period of 5 s."""

JITTER = 0.25
"""Delays are up to this much shorter or longer, so that the clients of a restarted server do not all come at once."""

FIRST_REMINDER_S = 8.0
"""After this time, and each time that it has doubled, the client says again that the server is away."""


class Outage:
    """The time in which a server cannot be reached. It begins with the first `failed` after `ended`.

    Args:
        give_up_after_s: The client gives up when an outage has lasted this long. None: never.
        clock: Seconds that never go back.
        draw: A random number from 0 to 1.
    """

    def __init__(
        self, give_up_after_s: float | None, clock: Callable[[], float], draw: Callable[[], float] = random.random
    ) -> None:
        self._give_up_after_s, self._clock, self._draw = give_up_after_s, clock, draw
        self.ended()

    def ended(self) -> None:
        """The server has been reached."""
        self._began_at: float | None = None
        self._delay_s, self._reminder_s, self._problem = FIRST_DELAY_S, FIRST_REMINDER_S, ""

    def explain_end(self, problem: str) -> str:
        """Return the error of a client that gives up: how long it has tried, and why the last try failed."""
        tried_s = 0.0 if self._began_at is None else self._clock() - self._began_at
        return f"given up after {tried_s:.0f} s of trying; the last error: {problem}"

    def failed(self, problem: str) -> tuple[float | None, str]:
        """Return the delay in seconds until the next try, None to give up; and what to say, or ""."""
        now = self._clock()
        if self._began_at is None:
            self._began_at = now
        away_s = now - self._began_at
        if self._give_up_after_s is not None and away_s >= self._give_up_after_s:
            return None, f"{problem} (given up after {away_s:.0f} s)"
        said = ""
        if problem != self._problem:
            self._problem, said = problem, problem
        if away_s >= self._reminder_s:
            said = f"{problem} (for {away_s:.0f} s now)"
            while self._reminder_s <= away_s:
                self._reminder_s *= 2
        delay_s = self._delay_s * (1 + JITTER * (2 * self._draw() - 1))
        self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
        if self._give_up_after_s is not None:
            delay_s = min(delay_s, self._give_up_after_s - away_s)
        return delay_s, said
