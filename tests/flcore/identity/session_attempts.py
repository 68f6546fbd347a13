"""Attempts of clients whose certificates were sound: revoked ones, stolen secrets, and connections of other kinds."""

import socket
import ssl
import time
from functools import partial

import grpc
from flcore_layout import Layout, PayloadPart, Segment
from flcore_transport import DownloadRequest, GrpcConnection, GrpcServer, Join, PeerCertificate, TlsKeys, split_address
from flcore_transport.control import MAX_MESSAGE_BYTES, encode_message
from flcore_transport.grpc_channel import CLIENT_METADATA, SERVICE
from flcore_transport.messages import PROTOCOL, Failure, UploadRequest

from flcore.identity.certificate import utc_now
from flcore.identity.deny_list import deny
from tests.flcore.identity.certificate_attempts import Attempt, Prepare
from tests.flcore.identity.certificates import resigned
from tests.flcore.identity.federation_site import FederationSite
from tests.flcore.identity.forged import sign, subject
from tests.transport.conftest import MODEL, Pattern
from tests.transport.test_grpc_tls import SESSION_CALL

LARGE_CONTENT = bytes(MAX_MESSAGE_BYTES - 100)
"""Makes a join as large as a message may be."""


class LargePattern(Pattern):
    """Thirty-two pieces: more than HTTP/2 windows hold, so a download is underway until it ends."""

    layout = Layout((PayloadPart("model", (Segment("float32", 32 << 19),)),))


def revoked_before(site: FederationSite) -> Attempt:
    name = site.fresh_name()
    keys = site.issue(name)
    site.authority.revoke(name, now=utc_now())
    return partial(site.join, keys, name)


def revoked_and_disguised(site: FederationSite) -> Attempt:
    name = site.fresh_name()
    pair = site.authority.issue(name, now=utc_now())
    site.authority.revoke(name, now=utc_now())
    return partial(site.join, TlsKeys(pair.key_pem, resigned(pair.certificate), site.home.pem), name)


def revoked_and_the_list(content: bytes | None) -> Prepare:
    """Join after the deny list, which the server has read, has got another content or is removed."""

    def prepare(site: FederationSite) -> Attempt:
        attempt, path = revoked_before(site), site.directory / "revoked.txt"
        sound = path.read_bytes()
        assert site.outcome(attempt)[0] == "revoked"

        def damage_and_join() -> object:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            try:
                return attempt()
            finally:
                path.write_bytes(sound)

        return damage_and_join

    return prepare


def revoked_of_another_authority(site: FederationSite) -> Attempt:
    signer = sign(site.north, subject("CN=fl,O=North"))
    digest = PeerCertificate(signer.pem, "TLSv1.3")
    fingerprint = site.server._tls.identify(digest).fingerprint  # type: ignore[union-attr]
    deny(site.directory / "revoked.txt", {fingerprint: "north"})
    return partial(site.join, signer, "north")


# Revoked while connected.


def revoked_on_a_stream(site: FederationSite) -> Attempt:
    name, _, _ = site.member()
    session = site.sessions[-1]

    def wait() -> object:
        site.authority.revoke(name, now=utc_now())
        return next(session)

    return wait


def revoked_and_calls_again(site: FederationSite) -> Attempt:
    name, keys, secret = site.member()
    site.authority.revoke(name, now=utc_now())
    return site.calls(keys, "Report", encode_message(Failure(secret, 1, "x")), secret)


def revoked_in_an_upload(site: FederationSite) -> Attempt:
    name, keys, secret = site.member()
    replies = site.replies(keys, "Upload", encode_message(UploadRequest(secret, 1, b"", MODEL)), secret, is_half=True)
    next(replies)  # a credit: the upload has begun

    def wait() -> object:
        site.authority.revoke(name, now=utc_now())
        return next(replies)

    return wait


def revoked_in_a_download(site: FederationSite) -> Attempt:
    name, keys, secret = site.member()
    site.service.source = LargePattern()
    pieces = site.connect(keys).download(DownloadRequest(secret, 1))
    next(pieces)

    def wait() -> object:
        site.authority.revoke(name, now=utc_now())
        time.sleep(0.1)  # nothing is read meanwhile
        return list(pieces)

    return wait


# Session secrets.


def stolen(method: str, *, in_metadata: bool) -> Prepare:
    """Use another client's secret: in the metadata and the message, or in the message alone."""

    def prepare(site: FederationSite) -> Attempt:
        _, _, secret = site.member()
        _, keys, own_secret = site.member()
        message = {
            "Download": DownloadRequest(secret, 1),
            "Upload": UploadRequest(secret, 1, b"", MODEL),
            "Report": Failure(secret, 1, "x"),
        }[method]
        return site.calls(keys, method, encode_message(message), secret if in_metadata else own_secret)

    return prepare


def secret_of_another_certificate(site: FederationSite) -> Attempt:
    name, _, secret = site.member()
    renewed = site.authority.renew(name, now=utc_now())
    keys = TlsKeys(renewed.key_pem, renewed.certificate.pem, site.home.pem)
    return site.calls(keys, "Report", encode_message(Failure(secret, 1, "x")), secret)


def secret_of_an_earlier_server(site: FederationSite) -> Attempt:
    name = site.fresh_name()
    keys = site.issue(name)
    earlier = site.serve()
    secret = site.join(keys, name, address=earlier.address)
    site.opened[-1].close()
    earlier.close()
    return site.calls(keys, "Report", encode_message(Failure(secret, 1, "x")), secret)


def secret_made_up(site: FederationSite) -> Attempt:
    _, keys, _ = site.member()
    return site.calls(keys, "Upload", encode_message(UploadRequest("x" * 32, 1, b"", MODEL)), "x" * 32)


def no_secret(site: FederationSite) -> Attempt:
    _, keys, secret = site.member()
    return site.calls(keys, "Download", encode_message(DownloadRequest(secret, 1)), "")


def in_the_calls_name(site: FederationSite) -> Attempt:
    """Name oneself in the call's metadata, and another client in the join."""
    name = site.fresh_name()
    connection = site.connect(site.issue(name))
    return lambda: first_message(connection, Join("alice", "1"), (CLIENT_METADATA, name.encode()))


def without_a_name(site: FederationSite) -> Attempt:
    """Join as a client of an earlier protocol does, without a name in the call's metadata."""
    name = site.fresh_name()
    connection = site.connect(site.issue(name))
    return lambda: first_message(connection, Join(name, "1"))


def of_another_version(site: FederationSite) -> Attempt:
    name = site.fresh_name()
    connection = site.connect(site.issue(name))
    return lambda: next(connection.session(Join(name, "1", protocol=PROTOCOL + 1)))


def first_message(connection: GrpcConnection, join: Join, *metadata: tuple[str, bytes]) -> bytes:
    """Return the first message of a session's call, or raise the server's refusal."""
    session: grpc.UnaryStreamMultiCallable[bytes, bytes] = connection._control.unary_stream(f"/{SERVICE}/Session")
    call = session(encode_message(join), metadata=metadata)
    try:
        return next(iter(call))
    except grpc.RpcError as error:
        raise connection._to_transport_error(call) from error


def uninvited(site: FederationSite) -> Attempt:
    """Join with a certificate of this federation, but with a name that the job does not list."""
    return partial(site.join, site.issue("stranger"), "stranger", content=LARGE_CONTENT)


def two_processes_with_one_identity(site: FederationSite) -> Attempt:
    name, keys, _ = site.member()
    return partial(site.join, keys, name, instance="2")


def with_another_certificate(site: FederationSite) -> Attempt:
    name, _, _ = site.member()
    renewed = site.authority.renew(name, now=utc_now())
    return partial(site.join, TlsKeys(renewed.key_pem, renewed.certificate.pem, site.home.pem), name)


# Connections.


def tls_1_2(site: FederationSite) -> Attempt:
    keys = site.issue(site.fresh_name())
    return lambda: site.exchange(site.tls(keys, version=ssl.TLSVersion.TLSv1_2), SESSION_CALL)


def without_alpn(site: FederationSite) -> Attempt:
    keys = site.issue(site.fresh_name())
    return lambda: site.exchange(site.tls(keys, alpn=""), SESSION_CALL)


def another_protocol(site: FederationSite) -> Attempt:
    keys = site.issue(site.fresh_name())
    return lambda: site.exchange(site.tls(keys, alpn="http/1.1"), b"GET / HTTP/1.1\r\n\r\n")


def plaintext_call(site: FederationSite) -> Attempt:
    return lambda: site.exchange(socket.create_connection(split_address(site.server.address), timeout=5), SESSION_CALL)


def tls_to_plaintext(site: FederationSite) -> Attempt:
    server = GrpcServer(site.service)
    keys = site.issue(site.fresh_name())

    def join() -> None:
        try:
            site.join(keys, "alice", address=server.address)
        finally:
            server.close()

    return join
