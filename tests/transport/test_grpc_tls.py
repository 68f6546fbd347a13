"""Mutual TLS: who gets in, as whom, and for how long."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from flcore_transport import (
    Ask,
    ConnectionLost,
    DownloadRequest,
    FromServer,
    GrpcConnection,
    GrpcServer,
    Join,
    PeerCertificate,
    Refused,
    TlsKeys,
    TransportError,
    Unreachable,
    Welcome,
    WrongServer,
    split_address,
)
from flcore_transport.endpoint import Endpoint, Session

from tests.transport.certificates import CLIENT, SERVER, TestAuthority
from tests.transport.conftest import RecordingService


@dataclass(frozen=True)
class Member:
    """Whose certificate it is."""

    name: str
    fingerprint: str
    role: str = "client"
    federation: str = "hospitals"


class CommonNames:
    """TLS of a server that takes the common name of a certificate, and has a set of revoked fingerprints.

    A common name `lead/boss` has a role other than `client`.
    """

    def __init__(self, keys: TlsKeys) -> None:
        self.held = keys
        self.revoked: set[str] = set()
        self.broken: set[str] = set()
        self.calls = 0

    def keys(self) -> TlsKeys:
        return self.held

    def fingerprint_of(self, keys: TlsKeys) -> str:
        return x509.load_pem_x509_certificate(keys.certificate_chain).fingerprint(hashes.SHA256()).hex()

    def identify(self, certificate: PeerCertificate) -> Member:
        self.calls += 1
        loaded = x509.load_pem_x509_certificate(certificate.pem)
        common_name = str(loaded.subject.rdns[0].get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        role, _, name = common_name.rpartition("/")
        identity = Member(name, loaded.fingerprint(hashes.SHA256()).hex(), role or "client")
        if identity.name in self.broken:
            raise OSError("the disk is gone")
        if identity.fingerprint in self.revoked:
            raise Refused("revoked", "this certificate is revoked")
        return identity


class Site:
    """A server with TLS, and connections to it."""

    def __init__(self) -> None:
        self.authority, self.service = TestAuthority(), RecordingService()
        self.tls = CommonNames(self.authority.issue("the server", SERVER))
        self.server = GrpcServer(self.service, tls=self.tls)
        self.opened: list[GrpcConnection] = []
        self.sessions: list[Iterator[FromServer]] = []

    def connect(self, keys: TlsKeys) -> GrpcConnection:
        connection = GrpcConnection(self.server.address, keys=keys)
        self.opened.append(connection)
        return connection

    def join(self, keys: TlsKeys, name: str) -> str:
        """Join for good, and return the session's secret."""
        session = self.connect(keys).session(Join(name, "1"))
        self.sessions.append(session)
        welcome = next(session)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for connection in made.opened:
        connection.close()
    made.server.close("the test is over")


def test_a_client_is_who_its_certificate_says(site: Site) -> None:
    alice = site.authority.issue("alice")
    secret = site.join(alice, "alice")
    pieces = list(site.connect(alice).download(DownloadRequest(secret, 1)))
    assert len(pieces) == 4
    assert list(site.service.connected) == ["alice"]


def test_a_client_may_not_take_another_name(site: Site) -> None:
    with pytest.raises(Refused, match="its certificate is that of 'mallory'") as refused:
        site.join(site.authority.issue("mallory"), "alice")
    assert refused.value.kind == "wrong-identity"
    assert not site.service.connected
    assert site.service.refused_joins == [("alice", str(refused.value))]


def test_a_stolen_secret_is_of_no_use_with_another_certificate(site: Site) -> None:
    secret = site.join(site.authority.issue("alice"), "alice")
    with pytest.raises(Refused, match="join again") as refused:
        list(site.connect(site.authority.issue("mallory")).download(DownloadRequest(secret, 1)))
    assert refused.value.kind == "unknown-session"


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(lambda site: TestAuthority().issue("alice"), id="another CA"),
        pytest.param(lambda site: site.authority.issue("alice", SERVER), id="a server's key usage"),
        pytest.param(lambda site: site.authority.issue("alice", starts_in_days=-2, ends_in_days=-1), id="expired"),
        pytest.param(lambda site: site.authority.issue("alice", starts_in_days=1, ends_in_days=2), id="not yet valid"),
    ],
)
def test_tls_refuses_a_certificate_before_the_service_is_asked(site: Site, keys) -> None:  # type: ignore[no-untyped-def]
    held = keys(site)
    mixed = TlsKeys(held.private_key, held.certificate_chain, site.authority.root)
    with pytest.raises(ConnectionLost, match="refused this client's certificate"):
        site.join(mixed, "alice")
    assert site.tls.calls == 0


def test_a_client_takes_no_server_of_another_ca(site: Site) -> None:
    keys = site.authority.issue("alice")
    with pytest.raises(WrongServer, match=r"its certificate is not trusted .*: expected .* the authority 'another'"):
        site.join(TlsKeys(keys.private_key, keys.certificate_chain, TestAuthority("another").root), "alice")


def test_a_client_takes_no_server_with_a_clients_certificate(site: Site) -> None:
    site.tls.held = site.authority.issue("mallory", CLIENT)
    with pytest.raises(WrongServer, match="its certificate is not trusted"):
        site.join(site.authority.issue("alice"), "alice")


def test_a_client_with_tls_says_that_a_server_has_none(site: Site) -> None:
    plain = GrpcServer(RecordingService())
    connection = GrpcConnection(plain.address, keys=site.authority.issue("alice"))
    with pytest.raises(WrongServer, match=r"does not speak TLS 1\.3: it answers in plaintext; .*--insecure"):
        next(connection.session(Join("alice", "1")))
    plain.close()


def test_a_client_without_tls_says_that_a_server_has_it(site: Site) -> None:
    connection = GrpcConnection(site.server.address)
    with pytest.raises(WrongServer, match="speaks TLS, and plaintext was asked for; leave --insecure out"):
        next(connection.session(Join("alice", "1")))
    with pytest.raises(WrongServer, match="speaks TLS"):
        connection.ask(Ask(b""), 10)


@pytest.mark.parametrize(
    ("ends_in_days", "host", "said"),
    [
        pytest.param(-1, "127.0.0.1", r"\(certificate has expired\): ask .*flcore certs renew --server", id="expired"),
        pytest.param(1, "127.0.0.2", r"--server HOST:PORT.*flcore certs renew --server --host NAME", id="another name"),
    ],
)
def test_the_advice_is_that_for_the_certificates_fault(site: Site, ends_in_days: int, host: str, said: str) -> None:
    site.tls.held = site.authority.issue("the server", SERVER, starts_in_days=-2, ends_in_days=ends_in_days)
    server = GrpcServer(site.service, host=host, tls=site.tls)
    connection = GrpcConnection(server.address, keys=site.authority.issue("alice"))
    with pytest.raises(WrongServer, match=said):
        next(connection.session(Join("alice", "1")))
    server.close()


def test_a_client_that_has_been_in_waits_for_another_certificate(site: Site) -> None:
    alice = site.authority.issue("alice")
    connection = site.connect(alice)
    session = connection.session(Join("alice", "1"))
    assert isinstance(next(session), Welcome)
    site.tls.held = site.authority.issue("the server", SERVER, starts_in_days=-2, ends_in_days=-1)
    site.server.close("restarts")
    site.server = GrpcServer(site.service, port=split_address(site.server.address)[1], tls=site.tls)
    with pytest.raises(ConnectionLost, match="certificate has expired"):
        next(connection.session(Join("alice", "2")))


def test_a_server_that_is_away_is_none_that_is_wrong(site: Site) -> None:
    connection = site.connect(site.authority.issue("alice"))
    site.server.close("ends")
    with pytest.raises(Unreachable, match="cannot be reached"):
        next(connection.session(Join("alice", "1")))


def test_a_renewed_certificate_is_served_without_a_restart(site: Site) -> None:
    alice, renewed = site.authority.issue("alice"), TestAuthority("the next CA")
    site.join(alice, "alice")
    site.tls.held = TlsKeys(*_pair(renewed.issue("the server", SERVER)), site.authority.root)
    with pytest.raises(WrongServer, match="its certificate is not trusted"):
        site.join(alice, "alice")
    site.join(TlsKeys(*_pair(alice), renewed.root), "alice")


def _pair(keys: TlsKeys) -> tuple[bytes, bytes]:
    return keys.private_key, keys.certificate_chain


def test_revoking_a_certificate_ends_its_session_within_a_second(site: Site) -> None:
    keys, ended = site.authority.issue("alice"), threading.Event()
    session = site.connect(keys).session(Join("alice", "1"))
    next(session)
    identity = site.tls.identify(PeerCertificate(keys.certificate_chain, "TLSv1.3"))
    problems: list[Exception] = []

    def listen() -> None:
        try:
            next(session)
        except Refused as error:
            problems.append(error)
        ended.set()

    listener = threading.Thread(target=listen)
    listener.start()
    site.tls.revoked.add(identity.fingerprint)
    assert ended.wait(5)
    listener.join()
    assert isinstance(problems[0], Refused) and problems[0].kind == "revoked"
    with site.service.changed:
        assert site.service.changed.wait_for(lambda: not site.service.connected, 5)
    assert site.service.refused_certificates == [("alice", identity.fingerprint, str(problems[0]))]
    with pytest.raises(Refused, match="revoked"):
        site.join(keys, "alice")


def test_an_error_that_is_no_refusal_stops_no_check(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    keys = {name: site.authority.issue(name) for name in ("alice", "bob")}
    for name, held in keys.items():
        site.join(held, name)
    site.tls.broken.add("alice")
    calls, deadline = site.tls.calls, time.monotonic() + 20
    while site.tls.calls < calls + 6:  # three checks of both
        assert time.monotonic() < deadline
        time.sleep(0.05)
    site.tls.revoked |= {_fingerprint(held) for held in keys.values()}
    site.service.wait_until(lambda: list(site.service.connected) == ["alice"])
    site.tls.broken.clear()
    site.service.wait_until(lambda: not site.service.connected)
    assert caplog.text.count("certificates of sessions cannot be checked") == 1
    assert "the disk is gone" in caplog.text


def _fingerprint(keys: TlsKeys) -> str:
    return x509.load_pem_x509_certificate(keys.certificate_chain).fingerprint(hashes.SHA256()).hex()


class Link:
    """A session stream that goes nowhere."""

    def __init__(self) -> None:
        self.errors: list[TransportError] = []

    def send(self, message: FromServer) -> None:
        pass

    def cancel_transfers(self, assignment_id: int) -> None:
        pass

    def end(self, error: TransportError) -> None:
        self.errors.append(error)


def test_a_client_that_joins_anew_while_its_old_certificate_is_checked_stays() -> None:
    authority, endpoint, links = TestAuthority(), Endpoint(RecordingService()), [Link(), Link()]
    old, new = (PeerCertificate(authority.issue("alice").certificate_chain, "TLSv1.3") for _ in range(2))
    session = endpoint.join(Join("alice", "1"), links[0], (old, Member("alice", "old")))
    endpoint.leave(session, links[0])
    joined: list[Session] = []

    class JoinsAnew(CommonNames):
        def identify(self, certificate: PeerCertificate) -> Member:
            assert certificate is old
            joined.append(endpoint.join(Join("alice", "1"), links[1], (new, Member("alice", "new"))))
            raise Refused("revoked", "this certificate is revoked")

    assert endpoint.end_refused_session(session, JoinsAnew(authority.issue("the server", SERVER))) is not None
    assert endpoint.find_session(joined[0].secret, Member("alice", "new")) is joined[0]
    assert not links[1].errors


def test_tls_1_2_is_refused_at_the_first_call(site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flcore_transport")
    keys = site.authority.issue("alice")
    (tmp_path / "pair.pem").write_bytes(keys.private_key + keys.certificate_chain)
    context = ssl.create_default_context(cadata=keys.root_certificates.decode())
    context.load_cert_chain(tmp_path / "pair.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    host, port = split_address(site.server.address)
    with (
        socket.create_connection((host, port), timeout=10) as connected,
        context.wrap_socket(connected, server_hostname=host) as secured,
    ):
        secured.sendall(SESSION_CALL)
        received = b""
        while RST_STREAM not in received:
            received += secured.recv(65536)
    assert "expected TLSv1.3, the connection has TLSv1.2" in caplog.text
    assert site.tls.calls == 0


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field of HPACK, literal and without indexing (RFC 7541, 6.2.2)."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


_HEADERS = b"".join(
    [
        _literal(b":method", b"POST"),
        _literal(b":scheme", b"https"),
        _literal(b":path", b"/flcore.transport.v1.Transport/Session"),
        _literal(b":authority", b"localhost"),
        _literal(b"content-type", b"application/grpc"),
        _literal(b"te", b"trailers"),
    ]
)

RST_STREAM = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01"
"""The head of the frame that ends a call whose requests have not ended, on stream 1."""

SESSION_CALL = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # SETTINGS, empty
    + len(_HEADERS).to_bytes(3, "big")
    + b"\x01\x04\x00\x00\x00\x01"  # HEADERS, END_HEADERS, stream 1
    + _HEADERS
)
"""What HTTP/2 sends for a call of a session whose first message has not come yet."""
