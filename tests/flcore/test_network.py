"""The proxy that injects faults: each fault happens at its byte, and does to both ends what its name says."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.flcore.network import DOWN, UP, Fault, FaultKind, Network, network_to


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made


@pytest.fixture
def network(listener: socket.socket) -> Iterator[Network]:
    with network_to(listener.getsockname()[1]) as made:
        yield made


def connected(network: Network, listener: socket.socket, fault: Fault) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection with a fault, the client's first."""
    network.inject(fault)
    client = socket.create_connection(("127.0.0.1", network.port), timeout=10)
    server, _ = listener.accept()
    server.settimeout(10)
    return client, server


def received(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := end.recv(count - len(data))):
        data += more
    return data


def is_silent(end: socket.socket) -> bool:
    end.settimeout(0.2)
    try:
        return bool(end.recv(1)) and False
    except TimeoutError:
        return True
    except OSError:
        return False


def is_reset(end: socket.socket) -> bool:
    try:
        return bool(end.recv(1)) and False
    except ConnectionResetError:
        return True


def test_without_a_fault_both_directions_pass_and_are_counted(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault())
    with client, server:
        client.sendall(b"a" * 100_000)
        server.sendall(b"b" * 7)
        assert received(server, 100_000) == b"a" * 100_000 and received(client, 7) == b"b" * 7
        assert (network.passed(UP), network.passed(DOWN)) == (100_000, 7)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b"", "the end of one direction is passed on"


@pytest.mark.parametrize("at", [0, 1, 9])
def test_a_flip_changes_one_byte_and_no_other(network: Network, listener: socket.socket, at: int) -> None:
    client, server = connected(network, listener, Fault(FaultKind.FLIP, UP, at, mask=0x20))
    with client, server:
        client.sendall(b"0123456789")
        came = received(server, 10)
    assert [index for index in range(10) if came[index] != b"0123456789"[index]] == [at]
    assert came[at] == b"0123456789"[at] ^ 0x20


def test_a_reset_cuts_both_ends_after_its_byte(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault(FaultKind.RESET, UP, 4))
    with client, server:
        client.sendall(b"012345")
        assert is_reset(client)
        with pytest.raises(ConnectionResetError):
            received(server, 5)
    assert network.links[0].passed == {UP: 4, DOWN: 0} and network.links[0].is_hit


def test_a_truncation_ends_in_order(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault(FaultKind.TRUNCATE, UP, 4))
    with client, server:
        client.sendall(b"012345")
        assert received(server, 6) == b"0123" and client.recv(1) == b""


def test_a_black_hole_keeps_both_ends_open_and_silent(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault(FaultKind.BLACK_HOLE, DOWN, 2))
    with client, server:
        server.sendall(b"0123")
        assert received(client, 2) == b"01"
        client.sendall(b"lost")
        assert is_silent(client) and is_silent(server)


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_half_open_connection_is_gone_at_the_sender_alone(
    network: Network, listener: socket.socket, direction: object
) -> None:
    client, server = connected(network, listener, Fault(FaultKind.HALF_OPEN, UP if direction is UP else DOWN, 2))
    sender, receiver = (client, server) if direction is UP else (server, client)
    with client, server:
        sender.sendall(b"0123")
        assert received(receiver, 2) == b"01"
        assert is_reset(sender) and is_silent(receiver)


def test_a_duplicated_connection_brings_the_same_bytes_twice(network: Network, listener: socket.socket) -> None:
    client, first = connected(network, listener, Fault(FaultKind.DUPLICATE))
    second, _ = listener.accept()
    with client, first, second:
        client.sendall(b"0123")
        pair = received(first, 4), received(second, 4)
        assert pair == (b"0123", b"0123")
        replies = {first: b"1", second: b"2"}
        for end, reply in replies.items():
            end.sendall(reply)
        assert client.recv(1) in replies.values() and is_silent(client), "one of the two answers, the other is dropped"


def test_latency_and_bandwidth_delay_what_passes(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault(latency_s=0.1, bytes_per_s=1e6))
    with client, server:
        began = time.monotonic()
        client.sendall(bytes(100_000))
        assert received(server, 100_000) == bytes(100_000)
        assert time.monotonic() - began > 0.19


def test_cut_and_mend(network: Network, listener: socket.socket) -> None:
    client, server = connected(network, listener, Fault())
    with client, server:
        network.cut()
        assert is_reset(client) and is_reset(server)
    with socket.create_connection(("127.0.0.1", network.port), timeout=10) as refused:
        assert refused.recv(1) == b""
    network.mend()
    client, server = connected(network, listener, Fault())
    with client, server:
        client.sendall(b"0")
        assert server.recv(1) == b"0"
