"""The transport of large payloads in pieces, between one server and many clients.

It knows nothing of models, rules or rounds. A server's logic implements `Service`, and a `GrpcServer` or an
`InProcessServer` serves it. A client opens a `GrpcConnection` or an `InProcessConnection`.

Reading order: `messages` (control messages), `framing` (one piece), `arrow_schema` (the header of an Arrow stream of
pieces), `pieces` (a payload), `service` (the logic above), `endpoint` (a service's sessions), `hosted_jobs` (the
endpoints of a server), `flow_control`, then the two transports. gRPC is imported with the first gRPC server or
connection. The module `piece_format` is public, too.
"""

from typing import TYPE_CHECKING

from flcore_transport.client_limits import RateLimit
from flcore_transport.endpoint import JOB_FAILED, JOB_OVER, NO_SUCH_JOB, UNKNOWN_SESSION
from flcore_transport.errors import (
    ConnectionLost,
    PieceError,
    ProtocolMismatch,
    Refused,
    TransportError,
    Unreachable,
    WrongServer,
)
from flcore_transport.flow_control import WINDOW_PIECES
from flcore_transport.framing import Buffer
from flcore_transport.grpc_channel import (
    CONNECTION_BYTES,
    MAX_CONNECTIONS,
    UNAUTHENTICATED_BYTES,
    is_loopback,
    join_address,
    split_address,
)
from flcore_transport.identity import Identity, PeerCertificate, ServerTls, TlsKeys
from flcore_transport.in_process import InProcessConnection, InProcessServer
from flcore_transport.messages import (
    Ask,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Receipt,
    Reply,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
)
from flcore_transport.pieces import (
    Inbox,
    Outbox,
    PayloadSink,
    PayloadSource,
    PieceCache,
)
from flcore_transport.service import ClientLink, IncomingUpload, Service

if TYPE_CHECKING:
    from flcore_transport.grpc_client import GrpcConnection
    from flcore_transport.grpc_server import GrpcServer

__all__ = [
    "CONNECTION_BYTES",
    "JOB_FAILED",
    "JOB_OVER",
    "MAX_CONNECTIONS",
    "NO_SUCH_JOB",
    "UNAUTHENTICATED_BYTES",
    "UNKNOWN_SESSION",
    "WINDOW_PIECES",
    "Ask",
    "Buffer",
    "ClientLink",
    "ConnectionLost",
    "DownloadRequest",
    "Failure",
    "FromServer",
    "Goodbye",
    "GrpcConnection",
    "GrpcServer",
    "Identity",
    "InProcessConnection",
    "InProcessServer",
    "Inbox",
    "IncomingUpload",
    "Join",
    "Outbox",
    "PayloadSink",
    "PayloadSource",
    "PeerCertificate",
    "PieceCache",
    "PieceError",
    "ProtocolMismatch",
    "RateLimit",
    "Receipt",
    "Refused",
    "Reply",
    "ServerTls",
    "Service",
    "TaskAssignment",
    "TlsKeys",
    "TransportError",
    "Unreachable",
    "UploadRequest",
    "Welcome",
    "Withdrawal",
    "WrongServer",
    "is_loopback",
    "join_address",
    "split_address",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "GrpcServer":
            from flcore_transport.grpc_server import GrpcServer

            return GrpcServer
        if name == "GrpcConnection":
            from flcore_transport.grpc_client import GrpcConnection

            return GrpcConnection
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
