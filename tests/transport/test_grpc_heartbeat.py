"""Heartbeats: a stream that is silent, or has lost a message, ends, so that its client joins again."""

from collections.abc import Iterator

import pytest
from flcore_transport import (
    ConnectionLost,
    GrpcConnection,
    GrpcServer,
    Join,
    TaskAssignment,
    Welcome,
    grpc_heartbeat,
    split_address,
)
from flcore_transport.grpc_heartbeat import SessionWatch
from flcore_transport.messages import FromServer, Heartbeat, SessionMessage

from tests.flcore.network import DOWN, Fault, FaultKind, network_to
from tests.transport.conftest import RecordingService


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RecordingService, Iterator[FromServer]]]:
    """A client's session on a server that sends a heartbeat every 50 ms."""
    monkeypatch.setattr(grpc_heartbeat, "HEARTBEAT_INTERVAL_S", 0.05)
    service = RecordingService()
    server = GrpcServer(service)
    connection = GrpcConnection(server.address)
    session = connection.session(Join("a", "1"))
    assert isinstance(next(session), Welcome)
    yield service, session
    connection.close()
    server.close("the test is over")


def test_heartbeats_keep_a_session_without_messages(
    joined: tuple[RecordingService, Iterator[FromServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, session = joined
    received, beats = SessionWatch.received, list[SessionMessage]()

    def told(watch: SessionWatch, message: SessionMessage) -> None:
        received(watch, message)
        beats.append(message)
        if len(beats) == 5:
            service.connected["a"].send(TaskAssignment(1, b"do it"))

    monkeypatch.setattr(SessionWatch, "received", told)
    assert next(session) == TaskAssignment(1, b"do it"), "no heartbeat comes out of the connection"
    assert beats[:5] == [Heartbeat(number) for number in range(1, 6)]


def test_a_session_that_has_lost_a_message_ends(
    joined: tuple[RecordingService, Iterator[FromServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, session = joined
    received = SessionWatch.received

    def losing(watch: SessionWatch, message: SessionMessage) -> None:
        if not (isinstance(message, Heartbeat) and message.sent == 1):
            received(watch, message)

    monkeypatch.setattr(SessionWatch, "received", losing)
    with pytest.raises(ConnectionLost, match="has lost messages: the server sent 2, 1 came"):
        next(session)


def test_a_silent_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_heartbeat, "SILENCE_TIMEOUT_S", 0.2)
    service = RecordingService()
    server = GrpcServer(service)
    connection = GrpcConnection(server.address)
    session = connection.session(Join("a", "1"))
    next(session)
    with pytest.raises(ConnectionLost):
        next(session)
    service.wait_until(lambda: not service.connected)
    assert isinstance(next(connection.session(Join("a", "1"))), Welcome)
    connection.close()
    server.close("the test is over")


HTTP2_STREAM, GRPC_LENGTH = 8, 11
"""Bytes of a message on the wire, in plaintext: of its stream's number, and of its length."""


@pytest.mark.parametrize(("at", "mask"), [(HTTP2_STREAM, 0x40), (GRPC_LENGTH, 0x10)])
def test_a_message_that_a_flipped_bit_of_a_header_hides_comes_after_joining_again(
    monkeypatch: pytest.MonkeyPatch, at: int, mask: int
) -> None:
    monkeypatch.setattr(grpc_heartbeat, "HEARTBEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(grpc_heartbeat, "SILENCE_TIMEOUT_S", 1.0)
    service = RecordingService()
    server = GrpcServer(service)
    with network_to(split_address(server.address)[1]) as network:
        connection = GrpcConnection(f"localhost:{network.port}")
        session = connection.session(Join("a", "1"))
        assert isinstance(next(session), Welcome)
        link = network.links[0]
        link.fault = Fault(FaultKind.FLIP, DOWN, link.passed[DOWN] + at, mask)
        service.connected["a"].send(TaskAssignment(1, b"do it"))
        with pytest.raises(ConnectionLost):
            assert next(session) is None, "nothing comes"
        assert link.is_hit
        again = connection.session(Join("a", "1"))
        assert isinstance(next(again), Welcome)
        service.connected["a"].send(TaskAssignment(1, b"do it"))
        assert next(again) == TaskAssignment(1, b"do it")
        connection.close()
    server.close("the test is over")
