"""A network between clients and a server on this machine: a TCP proxy on loopback that injects faults.

One thread runs an event loop for all connections. A fault holds for one connection and counts the bytes of one
direction of it, so a test names the byte at which it happens. Faults are given to the connections in the order of their
arrival (`Network.inject`); connections beyond these pass bytes unchanged.
"""

import array
import asyncio
import fcntl
import socket
import struct
import termios
import threading
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

READ_BYTES = 256 << 10
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of zero: `close` sends RST instead of FIN."""


class Direction(Enum):
    """Where bytes go."""

    UP = "to the server"
    DOWN = "to the client"


UP, DOWN = Direction.UP, Direction.DOWN


class FaultKind(Enum):
    """What happens to a connection after `Fault.at` bytes in `Fault.direction`."""

    NONE = "nothing"
    RESET = "both ends get RST"
    TRUNCATE = "both ends get FIN, as if the other had closed"
    BLACK_HOLE = "nothing passes any more, in either direction; both ends stay open"
    HALF_OPEN = "the sender gets RST, and the receiver hears nothing of it"
    FLIP = "the next byte is changed, all else passes"
    DUPLICATE = "a second connection to the server gets all of the client's bytes again"


@dataclass(frozen=True)
class Fault:
    """What one connection suffers.

    Attributes:
        kind: What happens.
        direction: The direction whose bytes are counted.
        at: The bytes that pass before it happens. A connection that carries fewer does not suffer it.
        mask: The bits that `FLIP` changes.
        latency_s: The delay of each read, in both directions.
        bytes_per_s: The bandwidth of each direction; 0 is unlimited.
    """

    kind: FaultKind = FaultKind.NONE
    direction: Direction = UP
    at: int = 0
    mask: int = 1
    latency_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(eq=False)
class Link:
    """One connection through the network. Only the network's thread changes it, but for `fault`.

    Attributes:
        fault: What it suffers. A test may set another one while no byte is on its way.
        passed: The bytes that passed, for each direction.
        taken: The bytes that left their sender, for each direction: those that the fault lost, too.
        is_hit: Whether its fault has happened.
    """

    client: socket.socket
    server: socket.socket
    fault: Fault
    passed: dict[Direction, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    taken: dict[Direction, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    is_hit: bool = False
    twin: socket.socket | None = None

    def reset(self, *ends: socket.socket) -> None:
        """Close both ends, or those given, with RST. Bytes that they have not read are lost, as with a cut cable."""
        for each in ends or (self.client, self.server):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            each.close()


class Network:
    """Passes bytes on between its own port and a server's. `cut` ends all connections, and none begins until `mend`.

    Attributes:
        port: Its port on 127.0.0.1.
        links: All connections so far, oldest first.
    """

    def __init__(self, server_port: int) -> None:
        self.links: list[Link] = []
        self._server_port = server_port
        self._faults: deque[Fault] = deque()
        self._is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def inject(self, *faults: Fault) -> None:
        """Give each of the next connections one of `faults`. Faults that were not used yet are dropped."""
        self._call(self._set_faults(faults))

    def reset(self) -> None:
        """Reset all connections. They have ended when this returns; new ones may begin at once."""
        self._call(self._end_links())

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._call(self._end_links(is_cut=True))

    def mend(self) -> None:
        """Take connections again."""
        self._is_cut = False

    def passed(self, direction: Direction) -> int:
        """Return the bytes that all connections have passed in a direction."""
        return sum(link.passed[direction] for link in list(self.links))

    def close(self) -> None:
        """End for good."""
        if not self._loop.is_closed():
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        tasks = {accepting, *self._tasks}
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._listener.close()
        self._loop.close()

    async def _set_faults(self, faults: tuple[Fault, ...]) -> None:
        self._faults = deque(faults)

    async def _end_links(self, *, is_cut: bool = False) -> None:
        self._is_cut = self._is_cut or is_cut
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            if self._is_cut:
                client.close()
                continue
            task = self._loop.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        """Carry one connection to its end; a cancellation resets both ends."""
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        link = Link(client, server, self._faults.popleft() if self._faults else Fault())
        self.links.append(link)
        try:
            for each in (client, server):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(server, ("127.0.0.1", self._server_port))
            await self._carry(link)
            if link.is_hit:
                await self._fail(link)
        except OSError:  # no server
            pass
        finally:
            link.reset(*(each for each in (client, server, link.twin) if each is not None))

    async def _carry(self, link: Link) -> None:
        """Pass bytes on until both directions have ended, one end is gone, or the fault ends the traffic."""
        with suppress(_TrafficEnds, OSError):
            try:
                async with asyncio.TaskGroup() as both:
                    if link.fault.kind is FaultKind.DUPLICATE:
                        link.twin = await self._connect_twin(both)
                    both.create_task(self._pass_on(link, UP, link.client, link.server))
                    both.create_task(self._pass_on(link, DOWN, link.server, link.client))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _connect_twin(self, both: asyncio.TaskGroup) -> socket.socket:
        """Connect to the server once more, and drop what it answers there."""
        twin = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        twin.setblocking(False)
        await self._loop.sock_connect(twin, ("127.0.0.1", self._server_port))

        async def drop_replies() -> None:
            with suppress(OSError):
                while await self._loop.sock_recv(twin, READ_BYTES):
                    pass

        both.create_task(drop_replies())
        return twin

    async def _pass_on(self, link: Link, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        """Pass on the bytes of one direction until it ends."""
        while data := await self._loop.sock_recv(source, READ_BYTES):
            fault = link.fault
            is_counted = fault.direction is direction and fault.kind not in (FaultKind.NONE, FaultKind.DUPLICATE)
            if fault.latency_s or fault.bytes_per_s:
                await asyncio.sleep(fault.latency_s + (len(data) / fault.bytes_per_s if fault.bytes_per_s else 0))
            left = fault.at - link.passed[direction]
            is_due = is_counted and not link.is_hit and len(data) > left
            link.taken[direction] += len(data)
            if is_due:
                link.taken[direction] += _unread_bytes(source)
                link.is_hit = True
                data = _flipped(data, left, fault.mask) if fault.kind is FaultKind.FLIP else data[:left]
            if direction is UP and link.twin is not None:
                with suppress(OSError):  # the server ended it
                    await self._loop.sock_sendall(link.twin, data)
            link.passed[direction] += len(data)
            await self._loop.sock_sendall(target, data)
            if is_due and fault.kind is not FaultKind.FLIP:
                raise _TrafficEnds
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    async def _fail(self, link: Link) -> None:
        """Carry out a fault that has ended the traffic. When this returns, both ends are closed."""
        ends = link.client, link.server
        match link.fault.kind:
            case FaultKind.TRUNCATE:
                for each in ends:
                    each.shutdown(socket.SHUT_WR)
                with suppress(TimeoutError, OSError):  # bytes left unread would make a RST of the FIN
                    async with asyncio.timeout(1):
                        await asyncio.gather(*(self._drain(each) for each in ends))
            case FaultKind.HALF_OPEN:
                link.reset(ends[0] if link.fault.direction is UP else ends[1])
                await asyncio.Event().wait()  # until the network ends the connection
            case FaultKind.BLACK_HOLE:
                await asyncio.Event().wait()

    async def _drain(self, end: socket.socket) -> None:
        while await self._loop.sock_recv(end, READ_BYTES):
            pass


class _TrafficEnds(Exception):
    """A fault ends the traffic of a connection."""


def _unread_bytes(end: socket.socket) -> int:
    """Return how many bytes have arrived at a socket and were not read."""
    unread = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, unread)
    return unread[0]


def _flipped(data: bytes, index: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[index] ^= mask
    return bytes(changed)


@contextmanager
def network_to(server_port: int) -> Iterator[Network]:
    """A network to a server while the block lasts."""
    made = Network(server_port)
    try:
        yield made
    finally:
        made.close()
