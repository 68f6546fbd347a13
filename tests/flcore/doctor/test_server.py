"""The way to a server: refused, slow, with another time; over the real transport in plaintext and TLS."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from flcore_transport import Ask, ConnectionLost, GrpcConnection, GrpcServer, Refused, Reply

from flcore.doctor.port import check_port_free
from flcore.doctor.server import check_port_reachable, check_rate, check_server
from flcore.federation.messages import MAX_BODY_BYTES, ListJobs, Ping, Pong, RequestContent
from flcore.federation.ping import answer_pings
from flcore.identity.certificate import utc_now
from flcore.identity.credentials import ClientCertificates
from flcore.identity.names import Role
from flcore.identity.tls import FederationTls, client_keys
from flcore.job.messages import parse_content
from tests.flcore.lead.kits import federation_authority, unpacked_kit
from tests.transport.conftest import RecordingService


class FakeConnection:
    """A server whose calls take a number of seconds by `clock`, and whose clock is ahead."""

    address = "fl.example.org:8470"

    def __init__(self, call_s: float = 0.01, ahead_s: float = 0.0, error: Exception | None = None) -> None:
        self.call_s, self.ahead_s, self.error, self.elapsed_s = call_s, ahead_s, error, 0.0
        self.asked: list[Ping] = []

    def clock(self) -> float:
        return self.elapsed_s

    def now(self) -> float:
        return 1e9 + self.elapsed_s

    def ask(self, ask: Ask, timeout_s: float | None = None) -> Reply:
        request = parse_content(RequestContent, ask.content).request
        assert isinstance(request, Ping) and len(ask.body) <= MAX_BODY_BYTES
        self.asked.append(request)
        self.elapsed_s += self.call_s
        if self.error is not None:
            raise self.error
        told = Pong(time_s=self.now() - self.call_s / 2 + self.ahead_s)
        return Reply(told.to_bytes(), bytes(request.nbytes))

    def outcomes(self) -> dict[str, str]:
        return {result.name: result.outcome for result in check_server(self, self.clock, self.now)}


def test_a_server_that_is_near_and_has_the_same_time() -> None:
    server = FakeConnection()
    results = check_server(server, server.clock, server.now)
    assert {result.name: result.outcome for result in results} == {
        "server": "ok", "clock": "ok", "download": "ok", "upload": "ok",
    }  # fmt: skip
    assert results[0].found == "fl.example.org:8470 answers; round trip 10.0 ms, the fastest of 5"
    assert results[1].found == "the server's clock is 0.00 s ahead, ± 0.00 s"
    assert results[2].found == "104.9 MB/s: 4 MiB in 0.04 s, on one connection"


@pytest.mark.parametrize(
    ("ahead_s", "call_s", "outcome"),
    [(1.9, 0.01, "ok"), (-2.5, 0.01, "warning"), (2.5, 2.0, "ok"), (400.0, 0.01, "failed"), (-400.0, 0.01, "failed")],
)
def test_a_clock_that_differs_by_more_than_the_round_trip_explains(ahead_s: float, call_s: float, outcome: str) -> None:
    server = FakeConnection(call_s, ahead_s)
    clock = check_server(server, server.clock, server.now)[1]
    assert clock.outcome == outcome
    assert f"{abs(ahead_s):.2f} s {'ahead' if ahead_s > 0 else 'behind'}" in clock.found


def test_a_slow_server_is_a_warning_and_is_not_measured_for_long() -> None:
    server = FakeConnection(call_s=1.5)
    outcomes = server.outcomes()
    assert outcomes == {"server": "warning", "clock": "ok", "download": "warning", "upload": "warning"}
    assert len(server.asked) == 5 + 1 + 1


def test_a_refused_certificate_and_a_server_that_is_away_fail() -> None:
    (found,) = check_server(FakeConnection(error=Refused("revoked", "the certificate of north\nis revoked")))
    assert found.outcome == "failed" and "new kit" in found.advice
    assert found.found == ("fl.example.org:8470 refused the request (revoked): the certificate of north\\nis revoked")
    (found,) = check_server(FakeConnection(error=ConnectionLost("fl.example.org:8470 cannot be reached: no answer")))
    assert found.outcome == "failed" and "cannot be reached" in found.found


@pytest.mark.parametrize("kind", ["no-requests", "malformed"])
def test_a_server_of_an_earlier_version_has_a_round_trip_and_no_clock(kind: str) -> None:
    assert FakeConnection(error=Refused(kind, "what?")).outcomes() == {"server": "ok", "clock": "warning"}


def test_a_rate_that_cannot_be_measured_has_failed() -> None:
    lost = FakeConnection(error=ConnectionLost("it is gone"))
    assert check_rate(lost, "upload").outcome == "failed"


@pytest.fixture
def serve() -> Iterator[Callable[..., GrpcServer]]:
    opened: list[GrpcServer] = []

    def start(tls: FederationTls | None = None) -> GrpcServer:
        opened.append(GrpcServer(RecordingService(), answer=answer_pings, tls=tls))
        return opened[-1]

    yield start
    for each in opened:
        each.close("the test is over")


def test_the_server_of_one_job_answers_pings_and_nothing_else(serve: Callable[..., GrpcServer]) -> None:
    with closing(GrpcConnection(serve().address)) as connection:
        results = check_server(connection)
        assert [result.outcome for result in results[:2]] == ["ok", "ok"], results
        assert [result.name for result in results] == ["server", "clock", "download", "upload"]
        with pytest.raises(Refused, match="takes no requests"):
            connection.ask(Ask(RequestContent(request=ListJobs()).to_bytes()))
        with pytest.raises(Refused) as refused:
            connection.ask(Ask(b'{"request": {"do": "dance"}}'))
        assert refused.value.kind == "malformed"


def test_a_kit_over_tls_and_one_that_is_revoked(serve: Callable[..., GrpcServer], tmp_path: Path) -> None:
    authority = federation_authority(tmp_path)
    address = serve(FederationTls(authority.server_directory)).address.replace("127.0.0.1", "localhost")
    keys = client_keys(ClientCertificates.load(unpacked_kit(authority, tmp_path, "north", Role.CLIENT)))
    with closing(GrpcConnection(address, keys=keys)) as connection:
        assert [result.outcome for result in check_server(connection)[:2]] == ["ok", "ok"]
        authority.revoke("north", now=utc_now())
        (found,) = check_server(connection)
        assert found.outcome == "failed" and "revoked" in found.found


def test_a_port_that_is_reachable_and_one_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert check_port_reachable(f"127.0.0.1:{port}").outcome == "ok"
        found = check_port_free("127.0.0.1", port)
        assert found.outcome == "failed" and "address already in use" in found.found and "--port" in found.advice
    found = check_port_reachable(f"127.0.0.1:{port}")
    assert found.outcome == "failed" and found.found.endswith("cannot be reached: connection refused")
    assert check_port_free("127.0.0.1", port).outcome == "ok"


def test_a_port_that_a_firewall_swallows() -> None:
    def silent(*_: object, **__: object) -> socket.socket:
        raise TimeoutError

    found = check_port_reachable("fl.example.org:8470", silent)
    assert found.outcome == "failed" and found.found.endswith("cannot be reached: no answer")


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "\u00fc" * 300])
def test_a_host_that_no_name_server_takes_is_no_traceback(host: str) -> None:
    result = check_port_reachable(f"{host}:80")
    assert (result.outcome, result.advice) == ("failed", "correct the host's name (--server)")
    assert "is no address: a part of the host's name is empty, or has more than 63 characters" in result.found
