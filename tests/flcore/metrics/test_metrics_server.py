"""The HTTP server of the metrics: GET of /metrics on loopback, and nothing else."""

import http.client
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

pytest.importorskip("prometheus_client")

from flcore_transport import TransportError
from prometheus_client import CollectorRegistry, Gauge

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
