"""Flow control of all transfers of a server: windows, fair queueing, stall timeouts; without a socket or a clock.

A *transfer* is one call that moves the pieces of one assignment in one direction. A server has a fixed number of pieces
for all transfers. A transfer queues for a *window* of a few pieces, first in, first out, and holds it from its first
piece to its last. So the memory of all transfers is bounded for any number of clients. Three rules end transfers:

- A transfer that waits for its client longer than its timeout, while others queue, yields. An upload ends; its client
  calls again and resumes at the first missing piece. A download returns its window except for the pieces already given
  to gRPC, and queues again when they have left; if they have not left after another timeout, it ends too. The timeout
  doubles each time, up to a minute, so that slow clients finish. All calls of one
  assignment and direction share one timeout.
- A client has one upload and one download at a time: a newer call ends the older one.
- The service can end a client's transfers of an assignment.

`FlowControl` is told events and the time, and returns `Action`s, which the two transports carry out. A transport calls
`end` when a call has really ended. Only then are its pieces given to others, because its memory is in use until then.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

from flcore_transport.errors import ConnectionLost, Refused, TransportError

WINDOW_PIECES = 4
"""The largest window, in pieces: enough to receive, check and request at the same time."""

DEFAULT_IN_FLIGHT_BYTES = 256 << 20
"""Bytes of pieces in flight over all transfers of a server, by default."""

MIN_SHARED_PIECES = 4
"""The fewest pieces that a server has for all transfers."""

MIN_RESERVED_PIECES = 2
"""The least that a transfer reserves: a window of one piece, and one piece in the buffers of its socket."""

YIELD_AFTER_S = 2.0
"""Seconds without a piece after which a transfer yields to queued ones, the first time."""

MAX_YIELD_AFTER_S = 60.0
"""The largest timeout that doubling reaches, in seconds."""


class Ending(Enum):
    """Why a transfer has to end before its last piece."""

    STALLED = "others wait for its window: call again to resume"
    SUPERSEDED = "a newer call of this session took its place"
    CANCELLED = "the server has ended the transfers of this assignment"
    UNTRUSTED = "this client's certificate is not accepted any more"
    JOB_LEFT = "the server has left this job: call again to learn how the job goes on"

    def error(self) -> TransportError:
        """Return the error of the client's call. A call that stalled, or whose job was left, may be retried."""
        if self in (Ending.STALLED, Ending.JOB_LEFT):
            return ConnectionLost(self.value)
        kinds = {Ending.SUPERSEDED: "superseded", Ending.CANCELLED: "cut", Ending.UNTRUSTED: "untrusted"}
        return Refused(kinds[self], self.value)


class TransferEnded(Exception):
    """A transfer has to end before its last piece."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class Instruction(Enum):
    """What a transfer does next."""

    PROCEED = "it has a window"
    YIELD_WINDOW = "its window is withdrawn; it requests another when the pieces in flight have left"
    END = "it ends, as its `ending` says"


@dataclass(eq=False)
class Transfer:
    """One call that moves pieces; only `FlowControl` changes it.

    Attributes:
        client: The client's name, or another key that no other client has.
        direction: "upload" or "download".
        assignment_id: The assignment's number.
        window: The pieces that may be in flight; 0 while it is queued.
        reserved: The pieces taken from the server's total: the window, and one more in the buffers of the socket. After
            a download has yielded, the pieces still in flight.
        ending: Why it has to end, or None.
        client_wait_since: The time since which it has waited for its client, or None.
    """

    client: Hashable
    direction: str
    assignment_id: int
    window: int = 0
    reserved: int = 0
    ending: Ending | None = None
    client_wait_since: float | None = field(default=None, repr=False)


Action = tuple[Transfer, Instruction]


class FlowControl:
    """Divides `pieces` pieces among transfers. A window has up to 4 pieces, fewer if few are left, and at least one.

    >>> flow_control = FlowControl(8)
    >>> transfer, _ = flow_control.begin("a", "upload", 1)
    >>> [(instruction.name, asked.window) for asked, instruction in flow_control.request_window(transfer)]
    [('PROCEED', 2)]
    """

    def __init__(self, pieces: int) -> None:
        if pieces < MIN_SHARED_PIECES:
            raise ValueError(f"expected at least {MIN_SHARED_PIECES} pieces in flight, got {pieces}")
        self.free = pieces
        self._yield_after_s = YIELD_AFTER_S
        self._backoffs: dict[tuple[Hashable, str], tuple[int, float]] = {}
        self._newest: dict[tuple[Hashable, str], Transfer] = {}
        self._queue: OrderedDict[Transfer, None] = OrderedDict()
        self._holders: dict[Transfer, None] = {}  # oldest window first

    @property
    def due_at(self) -> float:
        """The time of the next `tick` that would have an effect; infinity if there is none."""
        if not self._is_short_of_pieces:
            return math.inf
        return min((self._yields_at(transfer) for transfer in self._holders), default=math.inf)

    def yield_after_s(self, transfer: Transfer) -> float:
        """Return the seconds that a transfer may wait for its client while others queue."""
        assignment_id, yield_after_s = self._backoffs.get(
            (transfer.client, transfer.direction), (transfer.assignment_id, self._yield_after_s)
        )
        return yield_after_s if assignment_id == transfer.assignment_id else self._yield_after_s

    def begin(self, client: Hashable, direction: str, assignment_id: int) -> tuple[Transfer, list[Action]]:
        """Register a call. It ends the client's older call in the same direction."""
        transfer, older = Transfer(client, direction, assignment_id), self._newest.get((client, direction))
        self._newest[client, direction] = transfer
        return transfer, [] if older is None else self._request_end(older, Ending.SUPERSEDED)

    def request_window(self, transfer: Transfer) -> list[Action]:
        """Queue a transfer for a window."""
        if transfer.ending is not None or transfer.window or transfer in self._queue:
            return []
        self._return_pieces(transfer)
        self._queue[transfer] = None
        return self._grant_windows()

    def begin_client_wait(self, transfer: Transfer, now: float) -> None:
        """Record that a transfer waits for its client to send a piece or to read one."""
        transfer.client_wait_since = now

    def end_client_wait(self, transfer: Transfer) -> None:
        """Record that a transfer no longer waits for its client."""
        transfer.client_wait_since = None

    def end(self, transfer: Transfer, *, is_done: bool = False) -> list[Action]:
        """Remove a call that has ended and whose pieces are freed. `is_done`: all of its pieces were moved."""
        key = transfer.client, transfer.direction
        if self._newest.get(key) is transfer:
            del self._newest[key]
        if is_done:
            self._backoffs.pop(key, None)
        self._queue.pop(transfer, None)
        transfer.ending = transfer.ending or Ending.CANCELLED
        self._return_pieces(transfer)
        return self._grant_windows()

    def cancel(self, client: Hashable, assignment_id: int) -> list[Action]:
        """End a client's transfers of an assignment, for the service."""
        return [
            action
            for transfer in self._transfers_of(client)
            if transfer.assignment_id == assignment_id
            for action in self._request_end(transfer, Ending.CANCELLED)
        ]

    def end_client(self, client: Hashable, why: Ending = Ending.UNTRUSTED) -> list[Action]:
        """End all transfers of a client, by default one whose certificate is not accepted any more."""
        ended = self._transfers_of(client)
        return [action for transfer in ended for action in self._request_end(transfer, why)]

    def tick(self, now: float) -> list[Action]:
        """Make transfers yield whose timeout has passed, the most overdue first, as long as queued ones need pieces."""
        actions: list[Action] = []
        for transfer in sorted(self._holders, key=self._yields_at):
            if not self._is_short_of_pieces or self._yields_at(transfer) > now:
                break
            actions += self._yield_window(transfer, now)
        return actions

    @property
    def _is_short_of_pieces(self) -> bool:
        """Whether queued transfers need more than is free and will be returned by transfers that are about to end."""
        leaving = sum(transfer.reserved for transfer in self._holders if transfer.ending is not None)
        return self.free + leaving < MIN_RESERVED_PIECES * len(self._queue)

    def _yields_at(self, transfer: Transfer) -> float:
        if transfer.client_wait_since is None or transfer.ending is not None:
            return math.inf
        return transfer.client_wait_since + self.yield_after_s(transfer)

    def _yield_window(self, transfer: Transfer, now: float) -> list[Action]:
        yield_after_s = min(2 * self.yield_after_s(transfer), MAX_YIELD_AFTER_S)
        self._backoffs[transfer.client, transfer.direction] = transfer.assignment_id, yield_after_s
        if transfer.direction == "upload" or not transfer.window:
            return self._request_end(transfer, Ending.STALLED)
        # Up to two pieces stay in memory: one in gRPC, and the next, which is encoded meanwhile if the window has room.
        in_flight = min(2, transfer.window)
        self.free += transfer.reserved - in_flight
        transfer.window, transfer.reserved, transfer.client_wait_since = 0, in_flight, now
        return [(transfer, Instruction.YIELD_WINDOW), *self._grant_windows()]

    def _transfers_of(self, client: Hashable) -> list[Transfer]:
        """Return a client's newest download and upload; older ones have been asked to end."""
        return [found for direction in ("download", "upload") if (found := self._newest.get((client, direction)))]

    def _request_end(self, transfer: Transfer, why: Ending) -> list[Action]:
        """Ask a transfer to end. It keeps its pieces until its transport calls `end`."""
        if transfer.ending is not None:
            return []
        transfer.ending = why
        self._queue.pop(transfer, None)
        return [(transfer, Instruction.END)]

    def _return_pieces(self, transfer: Transfer) -> None:
        self.free += transfer.reserved
        transfer.window = transfer.reserved = 0
        transfer.client_wait_since = None
        self._holders.pop(transfer, None)

    def _grant_windows(self) -> list[Action]:
        actions: list[Action] = []
        while self._queue and self.free >= MIN_RESERVED_PIECES:
            transfer, _ = self._queue.popitem(last=False)
            # At most a quarter of the free pieces: when few are left, several transfers get small windows.
            transfer.window = max(1, min(WINDOW_PIECES, self.free // 4))
            transfer.reserved = transfer.window + 1
            self.free -= transfer.reserved
            self._holders[transfer] = None
            actions.append((transfer, Instruction.PROCEED))
        return actions
