"""Whose turn it is to move pieces: credits, fairness, patience and supersession, without a socket or a clock.

A *transfer* is one call that moves the pieces of one order in one direction. A server shares out so many pieces among
all transfers: one gets a *window* of a few pieces, in the order in which they asked, and holds it from its first piece
to its last. So the memory of all transfers has a bound, whatever the number of clients. Three rules go with it:

- A transfer that stands still for longer than its patience while others wait gives way. An upload ends; its client
  comes back and goes on where it broke off. A download gives its window back, but for the pieces that stand, and stands
  in line again when they have gone; if they still stand when its patience is over once more, it ends as well. Patience
  doubles each time, up to a minute, so that slow clients get through. It is the same for all calls of one order.
- A client has one transfer of each kind: a newer one ends the older one.
- The service may cut a client's transfers of an order.

`FlowControl` is told what happened and what time it is, and returns `Action`s. The two transports do what they say;
`end` is how a transport says that it has, and only then is what the transfer held shared out anew.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from flcore_transport.errors import ConnectionLost, Refused, TransportError

WINDOW_PIECES = 4
"""How many pieces a transfer may have under way, where there is room for so many."""

DEFAULT_IN_FLIGHT_BYTES = 256 << 20
"""How many bytes of pieces all transfers of a server have under way, unless it is told another number."""

MIN_SHARED_PIECES = 4
"""The fewest pieces that a server shares out."""

YIELD_AFTER_S = 2.0
"""After how many seconds without a piece a transfer gives way to those that wait, the first time."""

MAX_YIELD_AFTER_S = 60.0


class Ending(Enum):
    """Why a transfer has to end before its last piece."""

    STALLED = "others wait: come back and go on"
    SUPERSEDED = "a newer call of this session took its place"
    CANCELLED = "the server has ended the transfers of this order"

    def error(self) -> TransportError:
        """Return what the client's call raises: it may come back only where it stood still."""
        if self is Ending.STALLED:
            return ConnectionLost(self.value)
        return Refused("superseded" if self is Ending.SUPERSEDED else "cut", self.value)


class TransferEnded(Exception):
    """A transfer has to end before its last piece."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class Instruction(Enum):
    """What a transfer does next."""

    PROCEED = "it has its window"
    YIELD_WINDOW = "its window is gone; it asks again when what stands has gone"
    END = "it ends, as its `ending` says"


@dataclass(eq=False)
class Transfer:
    """One call that moves pieces; only `FlowControl` changes it.

    `window` is how many pieces may be under way, 0 while it has no turn. `reserved` is what it has of all that is
    shared out: its window, and one more piece, which its socket's buffers take.
    """

    client: str
    direction: str
    assignment_id: int
    window: int = 0
    reserved: int = 0
    ending: Ending | None = None
    client_wait_since: float | None = field(default=None, repr=False)


Action = tuple[Transfer, Instruction]


class FlowControl:
    """Shares out `pieces` pieces. A transfer gets a window of up to 4, less where little is left, and never of none.

    >>> flow_control = FlowControl(8)
    >>> transfer, _ = flow_control.begin("a", "upload", 1)
    >>> [(instruction.name, asked.window) for asked, instruction in flow_control.request_window(transfer)]
    [('PROCEED', 2)]
    """

    def __init__(self, pieces: int) -> None:
        if pieces < MIN_SHARED_PIECES:
            raise ValueError(f"a server shares out {MIN_SHARED_PIECES} pieces or more, not {pieces}")
        self.free = pieces
        self._yield_after_s = YIELD_AFTER_S
        self._backoffs: dict[tuple[str, str], tuple[int, float]] = {}
        self._newest: dict[tuple[str, str], Transfer] = {}
        self._queue: OrderedDict[Transfer, None] = OrderedDict()
        self._holders: dict[Transfer, None] = {}  # in the order in which their turns came

    @property
    def due_at(self) -> float:
        """When `tick` has something to do next, if nothing else happens (infinity: never)."""
        if not self._is_short_of_pieces:
            return math.inf
        return min((self._yields_at(transfer) for transfer in self._holders), default=math.inf)

    def yield_after_s(self, transfer: Transfer) -> float:
        """Return for how many seconds a transfer may stand still while others wait."""
        assignment_id, yield_after_s = self._backoffs.get(
            (transfer.client, transfer.direction), (transfer.assignment_id, self._yield_after_s)
        )
        return yield_after_s if assignment_id == transfer.assignment_id else self._yield_after_s

    def begin(self, client: str, direction: str, assignment_id: int) -> tuple[Transfer, list[Action]]:
        """A call begins; it ends the client's older call of this kind."""
        transfer, older = Transfer(client, direction, assignment_id), self._newest.get((client, direction))
        self._newest[client, direction] = transfer
        return transfer, [] if older is None else self._request_end(older, Ending.SUPERSEDED)

    def request_window(self, transfer: Transfer) -> list[Action]:
        """A transfer stands in line for a window."""
        if transfer.ending is not None or transfer.window or transfer in self._queue:
            return []
        self._return_pieces(transfer)
        self._queue[transfer] = None
        return self._grant_windows()

    def begin_client_wait(self, transfer: Transfer, now: float) -> None:
        """From now on a transfer waits for its client: for a piece to come, or to be taken."""
        transfer.client_wait_since = now

    def end_client_wait(self, transfer: Transfer) -> None:
        """What a transfer waited for has happened."""
        transfer.client_wait_since = None

    def end(self, transfer: Transfer, *, is_done: bool = False) -> list[Action]:
        """A call has ended, whatever the reason, and its pieces are gone; `is_done` says that all were moved."""
        key = transfer.client, transfer.direction
        if self._newest.get(key) is transfer:
            del self._newest[key]
        if is_done:
            self._backoffs.pop(key, None)
        self._queue.pop(transfer, None)
        transfer.ending = transfer.ending or Ending.CANCELLED
        self._return_pieces(transfer)
        return self._grant_windows()

    def cancel(self, client: str, assignment_id: int) -> list[Action]:
        """The service wants a client's transfers of an order to end."""
        transfers = [found for direction in ("download", "upload") if (found := self._newest.get((client, direction)))]
        return [
            action
            for transfer in transfers
            if transfer.assignment_id == assignment_id
            for action in self._request_end(transfer, Ending.CANCELLED)
        ]

    def tick(self, now: float) -> list[Action]:
        """Let time pass: as many of those that have stood still for too long give way as there are others that wait."""
        actions: list[Action] = []
        for transfer in sorted(self._holders, key=self._yields_at):
            if not self._is_short_of_pieces or self._yields_at(transfer) > now:
                break
            actions += self._yield_window(transfer, now)
        return actions

    @property
    def _is_short_of_pieces(self) -> bool:
        """Whether those that wait need more than those that are about to end will give back."""
        leaving = sum(transfer.reserved for transfer in self._holders if transfer.ending is not None)
        return self.free + leaving < 2 * len(self._queue)

    def _yields_at(self, transfer: Transfer) -> float:
        if transfer.client_wait_since is None or transfer.ending is not None:
            return math.inf
        return transfer.client_wait_since + self.yield_after_s(transfer)

    def _yield_window(self, transfer: Transfer, now: float) -> list[Action]:
        yield_after_s = min(2 * self.yield_after_s(transfer), MAX_YIELD_AFTER_S)
        self._backoffs[transfer.client, transfer.direction] = transfer.assignment_id, yield_after_s
        if transfer.direction == "upload" or not transfer.window:
            return self._request_end(transfer, Ending.STALLED)
        # Of a download one piece is on its way, and one more is made where the window has room for it.
        in_flight = min(2, transfer.window)
        self.free += transfer.reserved - in_flight
        transfer.window, transfer.reserved, transfer.client_wait_since = 0, in_flight, now
        return [(transfer, Instruction.YIELD_WINDOW), *self._grant_windows()]

    def _request_end(self, transfer: Transfer, why: Ending) -> list[Action]:
        """Have a transfer end; it keeps what it holds until it has."""
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
        while self._queue and self.free >= 2:
            transfer, _ = self._queue.popitem(last=False)
            transfer.window = max(1, min(WINDOW_PIECES, self.free // 4))
            transfer.reserved = transfer.window + 1
            self.free -= transfer.reserved
            self._holders[transfer] = None
            actions.append((transfer, Instruction.PROCEED))
        return actions
