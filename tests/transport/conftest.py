"""Both transports behind one fixture, and a service to serve: every test of them runs on each."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
from flcore_layout import DTYPES, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import (
    Buffer,
    ClientLink,
    DownloadRequest,
    FromServer,
    GrpcConnection,
    GrpcServer,
    Inbox,
    InProcessConnection,
    InProcessServer,
    Join,
    Outbox,
    PayloadSource,
    Receipt,
    Refused,
    Welcome,
    flow_control,
)
from flcore_transport.piece_format import PIECE_BODY_BYTES, join_body

MODEL = Layout((PayloadPart("model", (Segment("float32", 2_000_128),)),))
"""Four pieces, the last of them short."""

MIXED = Layout((PayloadPart("model", (Segment("float32", 600_064), Segment("int8[64]", 2_097_664))),))
"""Two pieces of float32, then two of codes with their scales; the last of each short."""

Connection = GrpcConnection | InProcessConnection


class Pattern:
    """A source whose bytes depend on where they are."""

    layout = MODEL

    def read(self, piece: SegmentRange) -> list[bytes]:
        return [bytes([piece.first // 256 % 251]) * (piece.count * 4)]


class MixedPattern:
    """A source of float32 elements, and of codes with scales; both depend on where they are."""

    layout = MIXED

    def read(self, piece: SegmentRange) -> list[Buffer]:
        return join_body(piece.dtype, piece.count, *([buffer] for buffer in self.expected(piece)))

    def expected(self, piece: SegmentRange) -> tuple[bytes, bytes]:
        row = DTYPES[piece.dtype]
        made = random.Random(f"{piece.segment} {piece.first}")
        return made.randbytes(piece.count * row.itemsize), made.randbytes(row.scale_bytes(piece.count))


@dataclass
class Collected:
    """A delivery that keeps what came."""

    layout: Layout
    tell: Callable[[], None] = lambda: None
    bodies: list[bytes] = field(default_factory=list)
    is_committed: bool = False
    has_ended: bool = False

    def __post_init__(self) -> None:
        self._inbox = Inbox(self.layout, self)

    @property
    def received(self) -> int:
        return self._inbox.received

    @property
    def expected(self) -> int:
        return len(self._inbox.piece_ranges)

    def write(self, _: SegmentRange, body: memoryview) -> None:
        self.bodies.append(bytes(body))

    def begin(self) -> "Future[None]":
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def accept(self, piece: bytes) -> None:
        self._inbox.accept(piece)
        self.tell()

    def commit(self) -> Receipt:
        self.is_committed = True
        return Receipt(1)

    def end(self) -> None:
        self.has_ended = True
        self.tell()


class RecordingService:
    """A service that lets everybody in but "stranger", and remembers what happened."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.connected: dict[str, ClientLink] = {}
        self.failures: list[tuple[str, int, str]] = []
        self.refused_joins: list[tuple[str, str]] = []
        self.refused_calls: list[tuple[str, str, str, str]] = []
        self.refused_certificates: list[tuple[str, str, str]] = []
        self.deliveries: dict[str, Collected] = {}
        self.contents: list[bytes] = []
        self.source: PayloadSource = Pattern()

    def authorize(self, client: str) -> None:
        if client == "stranger":
            raise Refused("not-invited", "who are you?")

    def admit(self, client: str, content: bytes) -> bytes:
        return b"welcome, " + client.encode() + content

    def join_refused(self, client: str, reason: str) -> None:
        self.refused_joins.append((client, reason))

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        self.refused_calls.append((client, fingerprint, kind, reason))

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        self.refused_certificates.append((client, fingerprint, reason))

    def client_connected(self, client: str, link: ClientLink) -> None:
        with self.changed:
            self.connected[client] = link
            self.changed.notify_all()

    def client_disconnected(self, client: str) -> None:
        with self.changed:
            del self.connected[client]
            self.changed.notify_all()

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:
        if assignment_id != 1:
            raise Refused("untimely", f"{client} has no order {assignment_id}")
        return Outbox(self.source)

    def begin_upload(self, client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout) -> Collected:
        self.contents.append(content)
        self.tell()
        return self.deliveries.setdefault(client, Collected(layout, self.tell))

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        self.failures.append((client, assignment_id, message))

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20)


@dataclass
class Rig:
    """A server of one transport, and connections to it."""

    service: RecordingService
    server: GrpcServer | InProcessServer
    opened: list[Connection] = field(default_factory=list)
    sessions: list[Iterator[FromServer]] = field(default_factory=list)

    @property
    def transport(self) -> str:
        return "grpc" if isinstance(self.server, GrpcServer) else "in-process"

    def connect(self) -> Connection:
        connection: Connection = (
            GrpcConnection(self.server.address)
            if isinstance(self.server, GrpcServer)
            else InProcessConnection(self.server)
        )
        self.opened.append(connection)
        return connection

    def secret_of(self, name: str) -> str:
        """Join for good, and return the session's secret."""
        session = self.connect().session(Join(name, "1"))
        self.sessions.append(session)
        welcome = next(session)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret

    def fetch(self, session: str, first_piece: int = 0, assignment_id: int = 1) -> list[bytes]:
        return list(self.connect().download(DownloadRequest(session, assignment_id, first_piece)))


@pytest.fixture(params=["grpc", "in-process"])
def transport(request: pytest.FixtureRequest) -> str:
    """A transport's name."""
    return str(request.param)


@pytest.fixture
def rig(transport: str) -> Iterator[Rig]:
    """A server with room for many transfers."""
    service = RecordingService()
    yield from opened(service, GrpcServer(service) if transport == "grpc" else InProcessServer(service))


@pytest.fixture
def narrow(transport: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A server with four pieces to share out, whose patience is short."""
    monkeypatch.setattr(flow_control, "YIELD_AFTER_S", 0.2)
    yield from with_four_pieces(transport)


@pytest.fixture
def patient(transport: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A server with four pieces to share out, whose patience is longer than any test."""
    monkeypatch.setattr(flow_control, "YIELD_AFTER_S", 600.0)
    yield from with_four_pieces(transport)


def with_four_pieces(transport: str) -> Iterator[Rig]:
    service = RecordingService()
    yield from opened(
        service,
        GrpcServer(service, in_flight_bytes=16 * PIECE_BODY_BYTES)
        if transport == "grpc"
        else InProcessServer(service, in_flight_bytes=4 * PIECE_BODY_BYTES),
    )


def opened(service: RecordingService, server: GrpcServer | InProcessServer) -> Iterator[Rig]:
    """Give a test a rig, and close it in the end."""
    made = Rig(service, server)
    yield made
    for connection in made.opened:
        connection.close()
    server.close("the test is over")
