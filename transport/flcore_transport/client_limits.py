"""Limits per client: its calls at a time, and its rates of joins and of refused calls; without a socket or a clock.

They hold over TLS, where a client is who its certificate says. Over plaintext a name is only claimed, and a limit by
name would let one client shut out another.

A client in several jobs has a process in each. So calls and joins are counted for each job, and the process of one job
cannot shut out that of another one. The jobs are those that the server hosts: a client cannot make up more.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable

MAX_CALLS_PER_CLIENT = 16
"""The most calls of one client at a time in one job, over all of its connections. It needs one session, an upload and
a download, and for a moment the calls that these supersede. gRPC holds up to 4 MiB of each one's unfinished message."""

MAX_ASKS_PER_CALLER = 8
"""The most asks of one caller at a time, over all of its connections; over plaintext, on each connection."""

JOIN_BURST = 10
"""The joins that a client may make at once, in one job."""

JOINS_PER_S = 1.0
"""The joins per second that a client may make in one job, in the long run."""

REFUSAL_BURST = 20
"""The calls of a certificate that are refused with a reason, at once. After that calls end without being looked at."""

REFUSALS_PER_S = 1.0
"""The calls per second of a certificate that are refused with a reason, in the long run."""

MAX_TRACKED = 10_000
"""The most clients whose rates are kept. The longest unused one is forgotten first."""


class RateLimit:
    """A token bucket for each key. Keys are forgotten at `MAX_TRACKED`, which gives a key its burst again.

    >>> limit = RateLimit(burst=2, per_s=1.0)
    >>> [limit.take("a", now=0.0) for _ in range(3)], limit.take("a", now=1.0), limit.take("b", now=1.0)
    ([True, True, False], True, True)
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._tokens: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Take a token, and return whether there was one."""
        tokens, then = self._tokens.get(key, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._per_s)
        is_taken = tokens >= 1
        self._tokens[key] = (tokens - is_taken, now)
        self._tokens.move_to_end(key)
        if len(self._tokens) > MAX_TRACKED:
            self._tokens.popitem(last=False)
        return is_taken


class ClientLimits:
    """The limits of all clients of one server. All methods run on its event loop."""

    def __init__(self) -> None:
        self.joins = RateLimit(JOIN_BURST, JOINS_PER_S)
        self.refusals = RateLimit(REFUSAL_BURST, REFUSALS_PER_S)
        self._calls: Counter[Hashable] = Counter()
        self._asks: Counter[Hashable] = Counter()

    def begin_call(self, client: Hashable) -> bool:
        """Count a call that begins, and return True; return False if the client has too many."""
        if self._calls[client] >= MAX_CALLS_PER_CLIENT:
            return False
        self._calls[client] += 1
        return True

    def end_call(self, client: Hashable) -> None:
        """Count a call that has ended."""
        self._calls[client] -= 1
        if not self._calls[client]:
            del self._calls[client]

    def begin_ask(self, caller: Hashable) -> bool:
        """Count an ask that begins, and return True; return False if its caller has too many."""
        if self._asks[caller] >= MAX_ASKS_PER_CALLER:
            return False
        self._asks[caller] += 1
        return True

    def end_ask(self, caller: Hashable) -> None:
        """Count an ask that has ended."""
        self._asks[caller] -= 1
        if not self._asks[caller]:
            del self._asks[caller]
