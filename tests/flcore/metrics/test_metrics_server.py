"""The HTTP server of the metrics: GET of /metrics on loopback, and nothing else."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

pytest.importorskip("prometheus_client")

from flcore_transport import TransportError
from prometheus_client import CollectorRegistry, Gauge

from flcore.metrics import metrics_server
from flcore.metrics.metrics_server import MAX_REQUESTS, MetricsServer


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("answer_ratio", "The answer.", registry=registry).set(0.5)
    with MetricsServer(registry) as serving:
        yield serving


def ask(server: MetricsServer, method: str = "GET", path: str = "/metrics", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_the_metrics_are_at_their_address(server: MetricsServer) -> None:
    assert server.url.startswith("http://127.0.0.1:") and server.url.endswith("/metrics")
    status, text = ask(server)
    assert status == 200 and "# HELP answer_ratio The answer." in text and "answer_ratio 0.5" in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_no_request_changes_anything(server: MetricsServer, method: str) -> None:
    assert ask(server, method)[0] == 405


def test_there_is_nothing_else(server: MetricsServer) -> None:
    assert ask(server, path="/../etc/passwd")[0] == ask(server, path="/metrics/x")[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example.org", "evil.example.org:80", "localhost.example.org", "", "]:x[", "[::1"]
)
def test_a_name_of_elsewhere_that_points_to_loopback_reads_nothing(server: MetricsServer, host: str) -> None:
    assert ask(server, Host=host)[0] == 421


def test_names_of_loopback_read_them(server: MetricsServer) -> None:
    for host in ("localhost", "localhost:9464", "127.0.0.1:1", "[::1]:9464"):
        assert ask(server, Host=host)[0] == 200


def test_another_address_than_loopback_needs_its_option() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(TransportError, match="--metrics-remote allows it"):
            MetricsServer(CollectorRegistry(), host)
    with MetricsServer(CollectorRegistry(), "0.0.0.0", allow_remote=True) as serving:
        assert ask(serving, Host="server.example.org")[0] == 200


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(TransportError, match=rf"cannot serve metrics on 127\.0\.0\.1:{port}: .*\(--metrics\)"):
            MetricsServer(CollectorRegistry(), port=port)


def test_requests_that_hang_are_bounded_and_do_not_keep_the_server_from_its_end(server: MetricsServer) -> None:
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    held = [socket.create_connection(address, 30) for _ in range(MAX_REQUESTS + 1)]
    try:
        held[-1].settimeout(30)
        assert held[-1].recv(1) == b"", "one more than the bound is closed at once"
    finally:
        for each in held:
            each.close()


def test_a_request_that_sends_a_byte_now_and_then_is_cut(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them would else keep all scrapes away for good."""
    monkeypatch.setattr(metrics_server, "REQUEST_TIMEOUT_S", 0.2)
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    with ExitStack() as stack:
        dripping = [stack.enter_context(socket.create_connection(address, 0.05)) for _ in range(MAX_REQUESTS)]
        waiting, until_s = list(dripping), time.monotonic() + 60
        while waiting and time.monotonic() < until_s:
            waiting = [each for each in waiting if is_open_after_a_byte(each)]
        assert not waiting
    assert retried(server) == 200


def is_open_after_a_byte(connection: socket.socket) -> bool:
    """Send a byte, and return whether the peer has not closed within the connection's time limit."""
    try:
        connection.sendall(b"x")
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_a_reader_that_takes_nothing_of_a_large_reply_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "REQUEST_TIMEOUT_S", 3.0)  # a reply of 32 MiB is made in it
    registry = CollectorRegistry()
    Gauge("large", "x" * (32 << 20), registry=registry)
    with MetricsServer(registry) as serving, ExitStack() as stack:
        address = (urlsplit(serving.url).hostname, urlsplit(serving.url).port)
        for _ in range(MAX_REQUESTS):
            held = stack.enter_context(socket.create_connection(address, 60))
            held.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held.recv(1)
        assert retried(serving, "/nothing") == 404


def test_a_request_whose_thread_cannot_start_gives_its_place_back(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(MAX_REQUESTS):
            with pytest.raises(OSError):
                ask(server)
    assert ask(server)[0] == 200


def retried(server: MetricsServer, path: str = "/metrics") -> int:
    """Return a reply's status, when the server has noticed that others have gone."""
    until_s = time.monotonic() + 60
    while True:
        try:
            return ask(server, path=path)[0]
        except OSError:
            assert time.monotonic() < until_s
            time.sleep(0.05)
