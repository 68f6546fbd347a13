"""Asks: requests without a session, from members of every role; their replies, their limits, and what is refused."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from flcore_transport import (
    Ask,
    ConnectionLost,
    DownloadRequest,
    Failure,
    GrpcConnection,
    GrpcServer,
    Identity,
    Join,
    Refused,
    Reply,
    TlsKeys,
    TransportError,
    UploadRequest,
    WrongServer,
    client_limits,
    grpc_asks,
    grpc_workers,
    split_address,
)
from flcore_transport.client_limits import MAX_ASKS_PER_CALLER, RateLimit
from flcore_transport.control import encode_message
from flcore_transport.grpc_channel import SERVICE, TOO_MANY_CALLS
from flcore_transport.messages import MAX_ASK_BODY_BYTES, MAX_ASK_CONTENT_BYTES, PROTOCOL

from tests.transport.certificates import SERVER, TestAuthority
from tests.transport.conftest import RecordingService
from tests.transport.hostile_peers import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, headers
from tests.transport.test_control import sealed, unsealed
from tests.transport.test_grpc_tls import CommonNames, Member

ALICE, BOSS, ROOT, NOBODY = "alice", "lead/boss", "admin/root", "server/server"


class Answering:
    """Answers asks by their content, and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Identity | None, Ask]] = []
        self.waiting: list[Future[Reply]] = []
        self.changed = threading.Condition()

    def __call__(self, identity: Identity | None, ask: Ask) -> "Reply | Future[Reply]":
        with self.changed:
            self.asked.append((identity, ask))
            self.changed.notify_all()
        match ask.content:
            case b"wait":
                with self.changed:
                    self.waiting.append(Future())
                    self.changed.notify_all()
                return self.waiting[-1]
            case b"refuse":
                raise Refused("not-allowed", "expected an admin; ask one")
            case b"large":
                return Reply(b"", bytes(MAX_ASK_BODY_BYTES + 1))
            case b"fault":
                raise KeyError("a secret of the server")
        return Reply(b"re: " + ask.content, ask.body)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20)


class Site:
    """A server that answers, over TLS or in plaintext, and connections to it."""

    def __init__(self, tls: str) -> None:
        self.authority = TestAuthority() if tls == "tls" else None
        self.tls = CommonNames(self.authority.issue("the server", SERVER)) if self.authority else None
        self.service, self.answer = RecordingService(), Answering()
        self.server = GrpcServer(self.service, tls=self.tls, answer=self.answer)
        self.keys: dict[str, TlsKeys] = {}
        self.opened: list[GrpcConnection] = []

    def connect(self, who: str = ALICE) -> GrpcConnection:
        keys = self.keys.setdefault(who, self.authority.issue(who)) if self.authority else None
        self.opened.append(GrpcConnection(self.server.address, keys=keys))
        return self.opened[-1]

    def wait_for_asks(self, count: int) -> None:
        """Wait until so many asks are open at the server."""
        until = time.monotonic() + 10
        while sum(self.server._limits._asks.values()) != count:
            assert time.monotonic() < until
            time.sleep(0.01)

    def reported(self, count: int) -> list[tuple[str, str]]:
        """Return the names and kinds of the refused calls, as soon as there are so many."""
        until = time.monotonic() + 10
        while len(self.service.refused_calls) < count and time.monotonic() < until:
            time.sleep(0.01)
        return [(client, kind) for client, _, kind, _ in self.service.refused_calls]


def opened(tls: str) -> Iterator[Site]:
    made = Site(tls)
    yield made
    for connection in made.opened:
        connection.close()
    made.server.close("the test is over")


@pytest.fixture(params=["plaintext", "tls"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from opened(request.param)


@pytest.fixture
def secure() -> Iterator[Site]:
    yield from opened("tls")


def refusal(call: Callable[..., object], *arguments: object) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.kind, str(caught.value)


def test_an_ask_of_the_largest_size_comes_and_goes_back(site: Site) -> None:
    ask = Ask(bytes(MAX_ASK_CONTENT_BYTES - 4), bytes(range(256)) * (MAX_ASK_BODY_BYTES // 256))
    assert site.connect().ask(ask) == Reply(b"re: " + ask.content, ask.body)
    assert site.connect().ask(Ask(b"")) == Reply(b"re: ")


@pytest.mark.parametrize("who", [ALICE, BOSS, ROOT])
def test_each_role_may_ask_and_is_named(secure: Site, who: str) -> None:
    assert secure.connect(who).ask(Ask(b"?")) == Reply(b"re: ?")
    role, _, name = who.rpartition("/")
    ((identity, ask),) = secure.answer.asked
    assert secure.tls is not None and ask == Ask(b"?")
    assert identity == Member(name, secure.tls.fingerprint_of(secure.keys[who]), role or "client")


def test_nobody_is_named_over_plaintext() -> None:
    for site in opened("plaintext"):
        site.connect().ask(Ask(b"?"))
        assert site.answer.asked == [(None, Ask(b"?"))]


def test_another_role_may_not_ask_and_only_clients_may_join(secure: Site) -> None:
    kind, said = refusal(secure.connect(NOBODY).ask, Ask(b"?"))
    assert kind == "role"
    assert said.startswith("the certificate of server server: expected the role client or lead or admin, got server; ")
    for who, name in ((BOSS, "boss"), (ROOT, "root")):
        kind, said = refusal(next, secure.connect(who).session(Join(name, "1")))
        assert kind == "role" and "expected the role client, got" in said
    assert secure.reported(3) == [("", "role")] * 3
    assert not secure.answer.asked and not secure.service.connected


def test_a_lead_has_no_calls_of_a_client_of_the_same_name(secure: Site) -> None:
    session = secure.connect("boss").session(Join("boss", "1"))
    secret = next(session).session_secret  # type: ignore[union-attr]
    connection = secure.connect(BOSS)
    kinds = [
        refusal(connection.report, Failure(secret, 1, "x"))[0],
        refusal(connection.upload, UploadRequest(secret, 1, b""), None)[0],
        refusal(next, connection.download(DownloadRequest(secret, 1)))[0],
    ]
    assert kinds == ["role"] * 3 and not secure.service.failures and not secure.service.contents


def test_no_certificate_and_one_of_another_authority_end_in_the_handshake(secure: Site) -> None:
    for keys, expected in ((TestAuthority().issue(ALICE), "can be reached, but"), (None, "speaks TLS, and plaintext")):
        with pytest.raises(WrongServer, match=expected):
            GrpcConnection(secure.server.address, keys=keys).ask(Ask(b"?"))
    assert not secure.answer.asked


def test_a_refusal_reaches_the_caller_and_is_reported(site: Site) -> None:
    assert refusal(site.connect(BOSS).ask, Ask(b"refuse")) == ("not-allowed", "expected an admin; ask one")
    assert site.reported(1) == [("boss" if site.tls else "", "not-allowed")]


def test_an_error_of_the_server_is_told_without_its_text(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    for content in (b"fault", b"large"):
        kind, said = refusal(site.connect().ask, Ask(content))
        assert (kind, said) == ("internal", "the server could not answer; see its log")
    assert "a secret of the server" in caplog.text and "the body of reply: expected at most 1048576" in caplog.text


def test_a_server_without_answers_says_so() -> None:
    service = RecordingService()
    server = GrpcServer(service)
    connection = GrpcConnection(server.address)
    assert refusal(connection.ask, Ask(b"?"))[0] == "no-requests"
    assert connection.running_transfers() == []
    connection.close()
    with pytest.raises(ConnectionLost, match="is closed"):
        connection.ask(Ask(b"?"))
    server.close()


def test_a_client_sends_no_ask_that_is_too_large(site: Site) -> None:
    for ask, part in ((Ask(bytes(MAX_ASK_CONTENT_BYTES + 1)), "content"), (Ask(b"", bytes(2 << 20)), "body")):
        kind, said = refusal(site.connect().ask, ask)
        assert kind == "too-large" and f"the {part} of ask: expected at most" in said
    assert not site.answer.asked and not site.service.refused_calls


def exchange(connection: GrpcConnection, data: bytes | None) -> bytes:
    """Send bytes as an ask and return the reply's bytes, or raise as the connection does; None: send nothing."""
    is_over = threading.Event()

    def requests() -> Iterator[bytes]:
        if data is None:
            is_over.wait(10)
        else:
            yield data

    method: grpc.StreamStreamMultiCallable[bytes, bytes] = connection._control.stream_stream(f"/{SERVICE}/Ask")
    call = method(requests(), timeout=20)
    try:
        return next(call)
    except grpc.RpcError as error:
        raise connection._to_transport_error(call) from error
    finally:
        is_over.set()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(encode_message(Ask(bytes(MAX_ASK_CONTENT_BYTES + 1))), "too-large", id="content"),
        pytest.param(encode_message(Ask(b"", bytes(MAX_ASK_BODY_BYTES + 1))), "too-large", id="body"),
        pytest.param(encode_message(Ask(b"", bytes(3 << 20))), "malformed", id="message"),
        pytest.param(sealed(b"\xff"), "malformed", id="no protobuf"),
        pytest.param(sealed(unsealed(encode_message(Ask(b"x"))) + b"\x20\x01"), "malformed", id="an unknown field"),
        pytest.param(sealed(unsealed(encode_message(Ask(b"x"))) * 2), "malformed", id="twice"),
        pytest.param(encode_message(Ask(b"x", protocol=PROTOCOL + 1)), "protocol", id="another version"),
        pytest.param(sealed(b""), "protocol", id="empty"),
    ],
)
def test_a_hostile_ask_is_refused_and_reported(site: Site, data: bytes, kind: str) -> None:
    assert refusal(exchange, site.connect(), data)[0] == kind
    assert site.reported(1) == [("alice" if site.tls else "", kind)]
    assert not site.answer.asked
    assert site.connect().ask(Ask(b"?")) == Reply(b"re: ?")


def test_a_corrupt_ask_may_be_sent_again(site: Site) -> None:
    with pytest.raises(ConnectionLost, match="Ask: corrupt"):
        exchange(site.connect(), encode_message(Ask(b"x"))[:-1] + b"\0")


def test_an_ask_that_does_not_come_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_workers, "REQUEST_TIMEOUT_S", 0.1)
    with pytest.raises(ConnectionLost, match="no request came in time"):
        exchange(site.connect(), None)


def test_a_caller_that_does_not_read_its_reply_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flcore_transport")
    monkeypatch.setattr(grpc_asks, "READ_TIMEOUT_S", 0.3)
    no_window = frame(SETTINGS, 0, 0, b"\x00\x04" + bytes(4))  # SETTINGS_INITIAL_WINDOW_SIZE = 0
    message = encode_message(Ask(b"?", bytes(1000)))
    for site in opened("plaintext"):
        with socket.create_connection(split_address(site.server.address), timeout=20) as connected:
            connected.sendall(PREFACE + no_window + frame(HEADERS, END_HEADERS, 1, headers("Ask")))
            connected.sendall(frame(DATA, END_STREAM, 1, b"\x00" + len(message).to_bytes(4, "big") + message))
            with suppress(ConnectionResetError):
                while connected.recv(65_536):
                    pass
        site.wait_for_asks(0)
        assert "does not read its reply: its connection is shut down" in caplog.text


def test_a_future_of_a_reply_holds_no_thread(site: Site) -> None:
    count = MAX_ASKS_PER_CALLER  # more than there are threads
    assert count > grpc_asks.ASK_THREADS
    with ThreadPoolExecutor(count) as pool:
        connection = site.connect()
        asked = [pool.submit(connection.ask, Ask(b"wait")) for _ in range(count)]
        site.answer.wait_until(lambda: len(site.answer.waiting) == count)
        other = site.connect(BOSS)
        assert other.ask(Ask(b"?")) == Reply(b"re: ?")
        for number, future in enumerate(site.answer.waiting):
            assert future.set_running_or_notify_cancel()
            future.set_result(Reply(str(number).encode()))
        assert {reply.result(20).content for reply in asked} == {str(number).encode() for number in range(count)}


def test_a_future_may_end_in_a_refusal_or_be_dropped(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        connection = site.connect()
        asked = pool.submit(connection.ask, Ask(b"wait"))
        site.answer.wait_until(lambda: len(site.answer.waiting) == 1)
        site.answer.waiting[0].set_exception(Refused("no-such-id", "expected the id of a job, got 'x'"))
        assert refusal(asked.result, 20) == ("no-such-id", "expected the id of a job, got 'x'")
        asked = pool.submit(connection.ask, Ask(b"wait"))
        site.answer.wait_until(lambda: len(site.answer.waiting) == 2)
        site.answer.waiting[1].cancel()
        assert refusal(asked.result, 20)[0] == "no-reply"


def test_a_future_that_is_never_done_ends_and_is_cancelled(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_asks, "REPLY_TIMEOUT_S", 0.2)
    assert refusal(site.connect().ask, Ask(b"wait")) == (
        "no-reply",
        "the server had no reply within 0.2 s; ask again",
    )
    site.wait_for_asks(0)
    assert site.answer.waiting[0].cancelled()


def test_a_caller_that_hangs_up_cancels_its_future_and_frees_its_place(site: Site) -> None:
    for number in range(1, 2 * MAX_ASKS_PER_CALLER + 1):
        connection = site.connect()
        asking = threading.Thread(target=refused_or_lost, args=(connection,))
        asking.start()
        site.answer.wait_until(lambda number=number: len(site.answer.waiting) == number)  # type: ignore[misc]
        connection.close()
        asking.join(10)
        site.wait_for_asks(0)
    assert all(future.cancelled() for future in site.answer.waiting)
    assert site.connect().ask(Ask(b"?")) == Reply(b"re: ?")


def test_a_caller_that_waits_no_longer_cancels_its_future(site: Site) -> None:
    connection = site.connect()
    connection.ask(Ask(b"?"))
    with pytest.raises(ConnectionLost, match="has not replied in time"):
        connection.ask(Ask(b"wait"), timeout_s=1.0)
    site.wait_for_asks(0)
    assert site.answer.waiting[0].cancelled()
    assert connection.ask(Ask(b"?")) == Reply(b"re: ?")


def refused_or_lost(connection: GrpcConnection) -> None:
    with pytest.raises(ConnectionLost):
        connection.ask(Ask(b"wait"))


def test_a_caller_has_so_many_asks_at_a_time_and_others_are_not_shut_out(secure: Site) -> None:
    with ThreadPoolExecutor(MAX_ASKS_PER_CALLER) as pool:
        asked = [pool.submit(secure.connect(BOSS).ask, Ask(b"wait")) for _ in range(MAX_ASKS_PER_CALLER)]
        secure.answer.wait_until(lambda: len(secure.answer.waiting) == MAX_ASKS_PER_CALLER)
        kind, said = refusal(secure.connect(BOSS).ask, Ask(b"?"))
        assert (kind, said) == ("too-many-asks", "expected at most 8 asks at a time; ask again later")
        assert secure.reported(1) == [("boss", "too-many-asks")]
        for other in ("boss", ROOT, "lead/other"):  # a client may have a lead's name
            assert secure.connect(other).ask(Ask(b"?")) == Reply(b"re: ?")
        secure.answer.waiting[0].set_result(Reply(b"1"))
        secure.wait_for_asks(MAX_ASKS_PER_CALLER - 1)
        assert secure.connect(BOSS).ask(Ask(b"?")) == Reply(b"re: ?")
        for future in secure.answer.waiting[1:]:
            future.set_result(Reply(b"2"))
    secure.wait_for_asks(0)
    assert {future.result(20).content for future in asked} == {b"1", b"2"}
    assert not secure.server._limits._asks


def test_a_flood_of_asks_ends_without_reasons_and_reports(secure: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure.server._limits, "refusals", RateLimit(burst=3, per_s=0.0))
    monkeypatch.setattr(client_limits, "MAX_ASKS_PER_CALLER", 0)
    for _ in range(3):
        assert refusal(secure.connect(BOSS).ask, Ask(b"?"))[0] == "too-many-asks"
    for _ in range(10):
        with pytest.raises(TransportError, match=TOO_MANY_CALLS):
            secure.connect(BOSS).ask(Ask(b"?"))
    assert len(secure.reported(3)) == 3 and not secure.answer.asked


def test_reasons_of_the_answering_side_always_come_and_few_are_reported(
    secure: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure.server._limits, "refusals", RateLimit(burst=3, per_s=0.0))
    connection = secure.connect(BOSS)
    for _ in range(10):
        assert refusal(connection.ask, Ask(b"refuse"))[0] == "not-allowed"
    assert len(secure.reported(3)) == 3


def test_a_certificate_that_is_revoked_gets_no_reply_that_it_waited_for(secure: Site) -> None:
    assert secure.tls is not None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(secure.connect(BOSS).ask, Ask(b"wait"))
        secure.answer.wait_until(lambda: len(secure.answer.waiting) == 1)
        secure.tls.revoked.add(secure.tls.fingerprint_of(secure.keys[BOSS]))
        secure.answer.waiting[0].set_result(Reply(b"a secret"))
        assert refusal(asked.result, 20)[0] == "revoked"
    assert refusal(secure.connect(BOSS).ask, Ask(b"?"))[0] == "revoked"


def test_a_server_that_is_away_is_told_at_once(site: Site) -> None:
    connection = site.connect()
    connection.ask(Ask(b"?"))
    fresh = site.connect()
    site.server.leave()
    for each in (connection, fresh):
        began_at = time.monotonic()
        with pytest.raises(ConnectionLost, match="cannot be reached: connection refused"):
            each.ask(Ask(b"?"))
        assert time.monotonic() - began_at < 5


def test_a_closing_server_ends_the_asks_that_wait(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(site.connect().ask, Ask(b"wait"))
        site.answer.wait_until(lambda: len(site.answer.waiting) == 1)
        began_at = time.monotonic()
        site.server.leave()
        assert time.monotonic() - began_at < 5
        with pytest.raises(ConnectionLost):
            asked.result(20)
