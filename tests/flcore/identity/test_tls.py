"""Mutual TLS with the certificates that `flcore certs` makes: by OpenSSL over a socket, and by gRPC."""

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates, utc_now
from flcore.identity.credentials import ServerCertificates, ServerCertificateWatch
from flcore.identity.names import Role
from flcore.identity.signing import KeyPair, sign_member
from tests.flcore.identity.certificates import authority_key, resigned

NOW = utc_now()
"""TLS looks at the machine's clock."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    place = tmp_path_factory.mktemp("home") / "certs"
    begun = NOW - timedelta(days=400)
    return Authority.create(place, "hospitals", ["localhost"], now=begun, server_days=800)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("stranger") / "certs", "hospitals", ["localhost"], now=NOW)


@pytest.fixture(scope="module")
def clients(home: Authority, stranger: Authority) -> dict[str, KeyPair]:
    def member(role: Role, name: str, days: int, begun: datetime, hosts: tuple[str, ...] = ()) -> KeyPair:
        return sign_member(home.certificate, authority_key(home.directory), role, name, days, begun, hosts)

    return {
        "good": home.issue("north", now=NOW),
        "lead": home.issue("boss", Role.LEAD, now=NOW),
        "renewed": home.renew("north", now=NOW),
        "stranger": stranger.issue("north", now=NOW),
        "expired": home.issue("late", now=NOW - timedelta(days=300), days=100),
        "not yet valid": home.issue("early", now=NOW + timedelta(days=10), days=10),
        "a server's": member(Role.SERVER, "north", 10, NOW),
        "with the server's host": member(Role.CLIENT, "evil", 10, NOW, ("localhost",)),
    }


ADMITTED = ("good", "lead", "renewed")
REFUSED = ("stranger", "expired", "not yet valid", "a server's")


def context(kind: ssl._SSLMethod, pair: KeyPair | None, root: bytes, place: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(kind)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=root.decode())
    if pair is not None:
        (place / "pair.pem").write_bytes(pair.certificate.pem + pair.key_pem)
        made.load_cert_chain(place / "pair.pem")
    return made


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> list[str]:
    """Shake hands over a socket of the loopback interface; return the URIs that the server sees."""
    with ThreadPoolExecutor(1) as pool, socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> list[str]:
            taken, _ = listening.accept()
            with server.wrap_socket(taken, server_side=True) as connection:
                seen: Any = connection.getpeercert()
                connection.sendall(b"welcome")
                return [value for kind, value in seen["subjectAltName"] if kind == "URI"]

        served = pool.submit(serve)
        with socket.create_connection(listening.getsockname()) as connecting:
            try:
                with client.wrap_socket(connecting, server_hostname=host) as connection:
                    assert connection.recv(10) == b"welcome"
            finally:
                connecting.close()
            return served.result(10)


@pytest.fixture
def server_context(home: Authority, tmp_path: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(home.server_directory / "ca.pem")
    made.load_cert_chain(home.server_directory / "server.pem")
    return made


@pytest.mark.parametrize("name", ADMITTED)
def test_openssl_admits(
    server_context: ssl.SSLContext, clients: dict[str, KeyPair], home: Authority, tmp_path: Path, name: str
) -> None:
    client = context(ssl.PROTOCOL_TLS_CLIENT, clients[name], home.certificate.pem, tmp_path)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("localhost", "127.0.0.1", "::1"):
        expected = "flcore://hospitals/lead/boss" if name == "lead" else "flcore://hospitals/client/north"
        assert shake(server_context, client, host) == [expected]


@pytest.mark.parametrize("name", [*REFUSED, "none"])
def test_openssl_refuses(
    server_context: ssl.SSLContext, clients: dict[str, KeyPair], home: Authority, tmp_path: Path, name: str
) -> None:
    client = context(ssl.PROTOCOL_TLS_CLIENT, clients.get(name), home.certificate.pem, tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(server_context, client, "localhost")


@pytest.mark.parametrize("fault", ["another host", "another authority", "a client's certificate"])
def test_a_client_knows_its_server(
    server_context: ssl.SSLContext,
    clients: dict[str, KeyPair],
    home: Authority,
    stranger: Authority,
    tmp_path: Path,
    fault: str,
) -> None:
    root = stranger.certificate.pem if fault == "another authority" else home.certificate.pem
    client = context(ssl.PROTOCOL_TLS_CLIENT, clients["good"], root, tmp_path)
    if fault == "a client's certificate":
        pair = clients["with the server's host"]
        server_context = context(ssl.PROTOCOL_TLS_SERVER, pair, home.certificate.pem, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server_context, client, "example.org" if fault == "another host" else "localhost")


class Facts(grpc.GenericRpcHandler):
    """Answers each call with what gRPC says of the peer."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._peers = certificates.peers

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, _: bytes, call: grpc.ServicerContext) -> bytes:
        (pem,) = call.auth_context()["x509_pem_cert"]
        (version,) = call.auth_context()["ssl_tls_version"]
        return f"{self._peers.identify(bytes(pem)).uri} {bytes(version).decode()}".encode()


@pytest.fixture(scope="module")
def address(home: Authority) -> Iterator[str]:
    loaded = ServerCertificates.load(home.server_directory)
    watch = ServerCertificateWatch(home.server_directory)
    first = grpc.ssl_server_certificate_configuration([(loaded.key_pem, loaded.chain_pem)], loaded.root_pem)

    def fetch() -> Any:
        renewed = watch.poll()
        return renewed and grpc.ssl_server_certificate_configuration([renewed], loaded.root_pem)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Facts(loaded)])
    credentials = grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"localhost:{port}"
    server.stop(None).wait()


def call(address: str, root: bytes, pair: KeyPair | None) -> str:
    key, chain = (None, None) if pair is None else (pair.key_pem, pair.certificate.pem)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain), options) as channel:
        ask: Any = channel.unary_unary("/flcore/facts")
        return bytes(ask(b"", timeout=10)).decode()


@pytest.mark.parametrize("name", ADMITTED)
def test_grpc_admits_and_names_the_peer(address: str, clients: dict[str, KeyPair], home: Authority, name: str) -> None:
    expected = "lead/boss" if name == "lead" else "client/north"
    assert call(address, home.certificate.pem, clients[name]) == f"flcore://hospitals/{expected} TLSv1.3"


@pytest.mark.parametrize("name", [*REFUSED, "none"])
def test_grpc_refuses(address: str, clients: dict[str, KeyPair], home: Authority, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(address, home.certificate.pem, clients.get(name))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_grpc_refuses_a_client_that_plays_the_server(home: Authority, clients: dict[str, KeyPair]) -> None:
    pair = clients["with the server's host"]
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(pair.key_pem, pair.certificate.pem)], home.certificate.pem, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            call(f"localhost:{port}", home.certificate.pem, clients["good"])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(None).wait()


def test_grpc_takes_up_a_renewed_certificate(address: str, home: Authority, clients: dict[str, KeyPair]) -> None:
    renewed = home.renew_server(now=NOW)
    assert call(address, home.certificate.pem, clients["good"]).startswith("flcore://")
    host, _, port = address.partition(":")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=home.certificate.pem.decode())
    client.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", int(port))) as connecting,
        client.wrap_socket(connecting, server_hostname=host) as connection,
    ):
        shown = connection.getpeercert(binary_form=True)
    assert shown is not None and ssl.DER_cert_to_PEM_cert(shown).encode() == renewed.certificate.pem


def test_grpc_admits_a_revoked_peer_and_the_deny_list_does_not(
    address: str, home: Authority, clients: dict[str, KeyPair]
) -> None:
    pair = home.issue("gone", now=NOW)
    assert "client/gone" in call(address, home.certificate.pem, pair)
    home.revoke("gone", now=NOW)
    for certificate in (pair.certificate, *parse_certificates(resigned(pair.certificate), "the same, disguised")):
        with pytest.raises(grpc.RpcError, match="is revoked"):
            call(address, home.certificate.pem, KeyPair(certificate, pair.key_pem))
