"""Limits per client: rates with a clock by hand, and a server over TLS that keeps them."""

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from flcore_transport import Join, Refused, Welcome, client_limits, grpc_workers
from flcore_transport.client_limits import ClientLimits, RateLimit
from flcore_transport.errors import TransportError
from flcore_transport.grpc_channel import SERVICE, SESSION_METADATA, TOO_MANY_CALLS
from flcore_transport.messages import Failure

from tests.transport.test_grpc_tls import Site


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for connection in made.opened:
        connection.close()
    made.server.close("the test is over")


def test_a_rate_has_a_burst_and_then_refills() -> None:
    limit = RateLimit(burst=3, per_s=2.0)
    assert [limit.take("a", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.take("b", 10.0)
    assert not limit.take("a", 10.4)
    assert [limit.take("a", 10.5), limit.take("a", 10.5)] == [True, False]
    assert [limit.take("a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "MAX_TRACKED", 10)
    limit = RateLimit(burst=1, per_s=0.0)
    for number in range(1000):
        assert limit.take(str(number), 0.0)
        assert not limit.take("999" if number == 999 else str(number), 0.0)
    assert len(limit._tokens) == 10


def test_calls_are_counted_until_they_end() -> None:
    limits = ClientLimits()
    assert all(limits.begin_call("a") for _ in range(client_limits.MAX_CALLS_PER_CLIENT))
    assert not limits.begin_call("a") and limits.begin_call("b")
    limits.end_call("a")
    assert limits.begin_call("a")
    for client in ["a"] * client_limits.MAX_CALLS_PER_CLIENT + ["b"]:
        limits.end_call(client)
    assert not limits._calls


def test_a_client_that_joins_too_often_waits_and_others_do_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.server._limits, "joins", RateLimit(burst=2, per_s=4.0))
    alice, bob = site.authority.issue("alice"), site.authority.issue("bob")
    started = time.monotonic()
    for _ in range(2):
        site.join(alice, "alice")
    site.join(bob, "bob")
    site.join(alice, "alice")  # by itself, as soon as it may
    assert time.monotonic() - started > 0.2, "the third token is there after 0.25 s"


def test_refusals_of_a_certificate_end_without_a_reason_after_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.server._limits, "refusals", RateLimit(burst=2, per_s=0.0))
    connection = site.connect(site.authority.issue("alice"))
    for _ in range(2):
        with pytest.raises(Refused, match="join again"):
            connection.report(Failure("made up", 1, "x"))
    with pytest.raises(TransportError, match=TOO_MANY_CALLS):
        connection.report(Failure("made up", 1, "x"))
    with pytest.raises(Refused, match="join again"):
        site.connect(site.authority.issue("bob")).report(Failure("made up", 1, "x"))


def test_a_client_has_so_many_calls_and_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "MAX_CALLS_PER_CLIENT", 1)
    alice = site.authority.issue("alice")
    secret = site.join(alice, "alice")
    with pytest.raises(TransportError, match=TOO_MANY_CALLS):
        site.connect(alice).report(Failure(secret, 1, "x"))
    bob = site.connect(site.authority.issue("bob")).session(Join("bob", "1"))
    assert isinstance(next(bob), Welcome)
    site.sessions.append(bob)


def test_a_request_that_does_not_come_ends_its_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_workers, "REQUEST_TIMEOUT_S", 0.1)
    alice = site.authority.issue("alice")
    secret = site.join(alice, "alice")
    is_over = threading.Event()

    def nothing() -> Iterator[bytes]:
        is_over.wait(10)
        yield from ()

    connection = site.connect(alice)
    for method in ("Upload", "Download", "Report"):
        open_call: grpc.StreamStreamMultiCallable[bytes, bytes] = connection._control.stream_stream(
            f"/{SERVICE}/{method}"
        )
        with pytest.raises(grpc.RpcError, match="no request came in time"):
            list(open_call(nothing(), metadata=((SESSION_METADATA, secret.encode()),)))
    is_over.set()
