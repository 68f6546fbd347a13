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

`Windows` is told what happened and what time it is, and returns `Action`s. The two transports do what they say; `end`
is how a transport says that it has, and only then is what the transfer held shared out anew.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum

from flcore_transport.errors import ConnectionLost, Refused, TransportError

WINDOW_PIECES = 4
"""How many pieces a transfer may have under way, where there is room for so many."""

DEFAULT_WINDOWS_BYTES = 256 << 20
"""How many bytes of pieces all transfers of a server have under way, unless it is told another number."""

LEAST_PIECES = 4
"""The fewest pieces that a server shares out."""

PATIENCE_S = 2.0
"""After how many seconds without a piece a transfer gives way to those that wait, the first time."""

MAX_PATIENCE_S = 60.0


class Ending(Enum):
    """Why a transfer has to end before its last piece."""

    STOOD_STILL = "others wait: come back and go on"
    SUPERSEDED = "a newer call of this session took its place"
    CUT = "the server has ended the transfers of this order"

    def error(self) -> TransportError:
        """Return what the client's call raises: it may come back only where it stood still."""
        return ConnectionLost(self.value) if self is Ending.STOOD_STILL else Refused(self.name.lower(), self.value)


class Ended(Exception):
    """A transfer has to end before its last piece."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class Step(Enum):
    """What a transfer does next."""

    GO = "it has its window"
    GIVE_WAY = "its window is gone; it asks again when what stands has gone"
    END = "it ends, as its `ending` says"


@dataclass(eq=False)
class Transfer:
    """One call that moves pieces; only `Windows` changes it.

    `window` is how many pieces may be under way, 0 while it has no turn. `held` is what it has of all that is shared
    out: its window, and one more piece, which its socket's buffers take.
    """

    client: str
    kind: str
    order: int
    window: int = 0
    held: int = 0
    ending: Ending | None = None
    standing_since: float | None = field(default=None, repr=False)


Action = tuple[Transfer, Step]


class Windows:
    """Shares out `pieces` pieces. A transfer gets a window of up to 4, less where little is left, and never of none.

    >>> windows = Windows(8)
    >>> transfer, _ = windows.begin("a", "upload", 1)
    >>> [(step.name, asked.window) for asked, step in windows.ask(transfer)]
    [('GO', 2)]
    """

    def __init__(self, pieces: int) -> None:
        if pieces < LEAST_PIECES:
            raise ValueError(f"a server shares out {LEAST_PIECES} pieces or more, not {pieces}")
        self.free = pieces
        self._patience_s = PATIENCE_S
        self._grown: dict[tuple[str, str], tuple[int, float]] = {}
        self._newest: dict[tuple[str, str], Transfer] = {}
        self._line: OrderedDict[Transfer, None] = OrderedDict()
        self._holding: dict[Transfer, None] = {}  # in the order in which their turns came

    @property
    def due_at(self) -> float:
        """When `tick` has something to do next, if nothing else happens (infinity: never)."""
        if not self._is_short:
            return math.inf
        return min((self._gives_way_at(transfer) for transfer in self._holding), default=math.inf)

    def patience_of(self, transfer: Transfer) -> float:
        """Return for how many seconds a transfer may stand still while others wait."""
        order, patience_s = self._grown.get((transfer.client, transfer.kind), (transfer.order, self._patience_s))
        return patience_s if order == transfer.order else self._patience_s

    def begin(self, client: str, kind: str, order: int) -> tuple[Transfer, list[Action]]:
        """A call begins; it ends the client's older call of this kind."""
        transfer, older = Transfer(client, kind, order), self._newest.get((client, kind))
        self._newest[client, kind] = transfer
        return transfer, [] if older is None else self._ending(older, Ending.SUPERSEDED)

    def ask(self, transfer: Transfer) -> list[Action]:
        """A transfer stands in line for a window."""
        if transfer.ending is not None or transfer.window or transfer in self._line:
            return []
        self._give_back(transfer)
        self._line[transfer] = None
        return self._share_out()

    def stand(self, transfer: Transfer, now: float) -> None:
        """From now on a transfer waits for its client: for a piece to come, or to be taken."""
        transfer.standing_since = now

    def move(self, transfer: Transfer) -> None:
        """What a transfer waited for has happened."""
        transfer.standing_since = None

    def end(self, transfer: Transfer, *, is_done: bool = False) -> list[Action]:
        """A call has ended, whatever the reason, and its pieces are gone; `is_done` says that all were moved."""
        key = transfer.client, transfer.kind
        if self._newest.get(key) is transfer:
            del self._newest[key]
        if is_done:
            self._grown.pop(key, None)
        self._line.pop(transfer, None)
        transfer.ending = transfer.ending or Ending.CUT
        self._give_back(transfer)
        return self._share_out()

    def cut(self, client: str, order: int) -> list[Action]:
        """The service wants a client's transfers of an order to end."""
        transfers = [found for kind in ("download", "upload") if (found := self._newest.get((client, kind)))]
        return [
            action for transfer in transfers if transfer.order == order for action in self._ending(transfer, Ending.CUT)
        ]

    def tick(self, now: float) -> list[Action]:
        """Let time pass: as many of those that have stood still for too long give way as there are others that wait."""
        actions: list[Action] = []
        for transfer in sorted(self._holding, key=self._gives_way_at):
            if not self._is_short or self._gives_way_at(transfer) > now:
                break
            actions += self._give_way(transfer, now)
        return actions

    @property
    def _is_short(self) -> bool:
        """Whether those that wait need more than those that are about to end will give back."""
        leaving = sum(transfer.held for transfer in self._holding if transfer.ending is not None)
        return self.free + leaving < 2 * len(self._line)

    def _gives_way_at(self, transfer: Transfer) -> float:
        if transfer.standing_since is None or transfer.ending is not None:
            return math.inf
        return transfer.standing_since + self.patience_of(transfer)

    def _give_way(self, transfer: Transfer, now: float) -> list[Action]:
        patience_s = min(2 * self.patience_of(transfer), MAX_PATIENCE_S)
        self._grown[transfer.client, transfer.kind] = transfer.order, patience_s
        if transfer.kind == "upload" or not transfer.window:
            return self._ending(transfer, Ending.STOOD_STILL)
        # Of a download one piece is on its way, and one more is made where the window has room for it.
        standing = min(2, transfer.window)
        self.free += transfer.held - standing
        transfer.window, transfer.held, transfer.standing_since = 0, standing, now
        return [(transfer, Step.GIVE_WAY), *self._share_out()]

    def _ending(self, transfer: Transfer, why: Ending) -> list[Action]:
        """Have a transfer end; it keeps what it holds until it has."""
        if transfer.ending is not None:
            return []
        transfer.ending = why
        self._line.pop(transfer, None)
        return [(transfer, Step.END)]

    def _give_back(self, transfer: Transfer) -> None:
        self.free += transfer.held
        transfer.window = transfer.held = 0
        transfer.standing_since = None
        self._holding.pop(transfer, None)

    def _share_out(self) -> list[Action]:
        actions: list[Action] = []
        while self._line and self.free >= 2:
            transfer, _ = self._line.popitem(last=False)
            transfer.window = max(1, min(WINDOW_PIECES, self.free // 4))
            transfer.held = transfer.window + 1
            self.free -= transfer.held
            self._holding[transfer] = None
            actions.append((transfer, Step.GO))
        return actions
