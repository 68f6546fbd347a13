"""A federation's server over mutual TLS that counts what it has read, and clients of every kind."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from flcore_layout import Layout
from flcore_transport import (
    ConnectionLost,
    FromServer,
    GrpcConnection,
    GrpcServer,
    Join,
    Refused,
    Service,
    TlsKeys,
    Welcome,
    WrongServer,
    grpc_joins,
    grpc_sessions,
    grpc_transfers,
    grpc_workers,
    split_address,
)
from flcore_transport.grpc_channel import SERVICE, SESSION_METADATA
from flcore_transport.grpc_workers import CallAborter, Context, read_message
from flcore_transport.messages import Refusal

from flcore.identity.authority import Authority
from flcore.identity.certificate import utc_now
from flcore.identity.tls import FederationTls
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.audit_log import AuditLog
from flcore.server.events import CallRefused, ClientRevoked, JoinRefused, Observer
from tests.flcore.identity.forged import Signer, private_pair, sign, signer_of, subject
from tests.transport.conftest import Collected, RecordingService

if TYPE_CHECKING:
    from tests.flcore.identity.token_attempts import Replays

CHECK_INTERVAL_S = 0.03
"""Seconds between two checks of certificates, here; the tests need not wait for half a second."""

MAPPING = """
[[certificate]]
subject = "CN=fl,O=North"
name = "north"
ca = "CN=North CA"

[[certificate]]
san = "DNS:fl.east"
name = "east"
ca = "CN=North CA"

[[certificate]]
san = "DNS:fl.west"
name = "west"
ca = "CN=South CA"
"""


class CountingService(RecordingService):
    """A service that counts how often it is asked, and passes events to an observer as a `Federation` does."""

    def __init__(self, observe: Observer) -> None:
        super().__init__()
        self.asked, self.observe = 0, observe

    def join_refused(self, client: str, reason: str) -> None:
        self.observe(JoinRefused(client, reason))

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        self.observe(CallRefused(client, fingerprint, kind, reason))

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        self.observe(ClientRevoked(client, fingerprint, reason))

    def admit(self, client: str, content: bytes) -> bytes:
        self.asked += 1
        return super().admit(client, content)

    def begin_upload(self, client: str, assignment_id: int, token: bytes, content: bytes, layout: Layout) -> Collected:
        self.asked += 1
        return super().begin_upload(client, assignment_id, token, content, layout)

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Any:
        self.asked += 1
        return super().begin_download(client, assignment_id, token)

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        self.asked += 1
        super().task_failed(client, assignment_id, token, message)


@dataclass
class Counts:
    """What the servers of this process have read and refused since the counts were taken to zero."""

    messages: int = 0
    nbytes: int = 0
    refusals: list[Refusal] = field(default_factory=list)


class FederationSite:
    """A server of the federation `hospitals`, which maps names of another authority, and connections to it."""

    def __init__(self, folder: Path, counts: Counts) -> None:
        self.folder, self.counts = folder, counts
        self.authority = Authority.create(folder / "certs", "hospitals", ["localhost"], now=utc_now())
        self.home = signer_of(self.authority)
        self.north = sign(None, subject("CN=North CA"), is_ca=True, uses=None)
        self.directory = self.authority.server_directory
        self.south = sign(None, subject("CN=South CA"), is_ca=True, uses=None)
        (self.directory / "other-cas.pem").write_bytes(self.north.pem + self.south.pem)
        (self.directory / "mapping.toml").write_text(MAPPING)
        self.audit_path = folder / AUDIT_FILE
        self.replays: Replays | None = None
        self.audit = AuditLog(self.audit_path)
        self.service = CountingService(self.audit)
        self.servers: list[GrpcServer] = []
        self.server = self.serve()
        self.opened: list[GrpcConnection] = []
        self.sessions: list[Iterator[FromServer]] = []
        self._number = 0

    def serve(self, service: Service | None = None) -> GrpcServer:
        self.servers.append(GrpcServer(service or self.service, tls=FederationTls(self.directory)))
        return self.servers[-1]

    def audited(self) -> list[dict[str, Any]]:
        """Return the entries of the audit log."""
        return [json.loads(line) for line in self.audit_path.read_bytes().splitlines()]

    def issue(self, name: str) -> TlsKeys:
        pair = self.authority.issue(name, now=utc_now())
        return TlsKeys(pair.key_pem, pair.certificate.pem, self.home.pem)

    def fresh_name(self) -> str:
        self._number += 1
        return f"client-{self._number}"

    def connect(self, keys: TlsKeys | Signer | None, address: str = "", root: bytes = b"") -> GrpcConnection:
        """Return a connection of a client that trusts this federation's server."""
        held = keys.keys if isinstance(keys, Signer) else keys
        mixed = None if held is None else TlsKeys(held.private_key, held.certificate_chain, root or self.home.pem)
        connection = GrpcConnection(address or self.server.address, keys=mixed)
        self.opened.append(connection)
        return connection

    def join(
        self, keys: TlsKeys | Signer | None, name: str, *, instance: str = "1", content: bytes = b"", **more: Any
    ) -> str:
        """Join for good, and return the session's secret."""
        session = self.connect(keys, **more).session(Join(name, instance, content))
        self.sessions.append(session)
        welcome = next(session)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret

    def require_sound_pair(self, keys: TlsKeys | Signer) -> None:
        """Raise `ssl.SSLError` if a client could not present a certificate, so that its own end would fail."""
        held = keys.keys if isinstance(keys, Signer) else keys
        ssl.create_default_context().load_cert_chain(private_pair(self.folder, held))

    def member(self) -> tuple[str, TlsKeys, str]:
        """Return name, keys and session secret of a new client that has joined."""
        name = self.fresh_name()
        keys = self.issue(name)
        return name, keys, self.join(keys, name)

    def replies(
        self, keys: TlsKeys, method: str, message: bytes, secret: str, *, is_half: bool = False
    ) -> Iterator[bytes]:
        """Make a call whose metadata carries a secret; yield its replies, or raise the server's refusal.

        With `is_half` the client sends nothing more, and does not say so.
        """
        connection, is_over = self.connect(keys), threading.Event()

        def requests() -> Iterator[bytes]:
            yield message
            if is_half:
                is_over.wait(10)

        open_call: grpc.StreamStreamMultiCallable[bytes, bytes] = connection._control.stream_stream(
            f"/{SERVICE}/{method}"
        )
        call = open_call(requests(), metadata=((SESSION_METADATA, secret.encode()),), timeout=10)
        try:
            yield from call
        except grpc.RpcError as error:
            raise connection._to_transport_error(call) from error
        finally:
            is_over.set()

    def calls(self, keys: TlsKeys, method: str, message: bytes, secret: str) -> Callable[[], list[bytes]]:
        """Return an attempt that makes a call."""
        return lambda: list(self.replies(keys, method, message, secret))

    def tls(
        self, keys: TlsKeys | None, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, alpn: str = "h2"
    ) -> ssl.SSLSocket:
        """Return a TLS connection by hand, or raise `ConnectionLost`."""
        context = ssl.create_default_context(cadata=self.home.pem.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
        if keys is not None:
            context.load_cert_chain(private_pair(self.folder, keys))
        if alpn:
            context.set_alpn_protocols([alpn])
        host, port = split_address(self.server.address)
        connected = socket.create_connection((host, port), timeout=5)
        try:
            return context.wrap_socket(connected, server_hostname=host)
        except OSError as error:
            connected.close()
            raise ConnectionLost(str(error)) from error

    def exchange(self, connected: socket.socket, data: bytes) -> None:
        """Send bytes, and raise the refusal that the server answers with, or `ConnectionLost` when it hangs up."""
        with connected, suppress(OSError):
            connected.sendall(data)
            while not self.counts.refusals and connected.recv(65536):
                pass
        if self.counts.refusals:
            raise Refused(self.counts.refusals[-1].kind, self.counts.refusals[-1].message)
        raise ConnectionLost("the server has hung up")

    def outcome(self, attempt: Callable[[], object]) -> tuple[str, str]:
        """Return the kind of a refusal, or `handshake`, or `admitted`, and the message."""
        try:
            attempt()
        except Refused as refused:
            return refused.kind, str(refused)
        except (ConnectionLost, WrongServer) as error:
            return "handshake", str(error)
        return "admitted", ""

    def close(self) -> None:
        for connection in self.opened:
            connection.close()
        for server in self.servers:
            server.close("the tests are over")
        self.audit.__exit__()


def counted(patch: pytest.MonkeyPatch) -> Counts:
    """Count what servers read and refuse, and let them check certificates often."""
    counts = Counts()
    refuse = CallAborter.refuse

    async def read(context: Context) -> bytes | None:
        data = await read_message(context)
        counts.messages += 1
        counts.nbytes += len(data or b"")
        return data

    async def record(self: CallAborter, context: Context, refused: Refusal) -> None:
        counts.refusals.append(refused)
        await refuse(self, context, refused)

    for module in (grpc_joins, grpc_transfers, grpc_workers):
        patch.setattr(module, "read_message", read)
    patch.setattr(CallAborter, "refuse", record)
    patch.setattr(grpc_sessions, "CERTIFICATE_CHECK_INTERVAL_S", CHECK_INTERVAL_S)
    return counts
