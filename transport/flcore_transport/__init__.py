"""The transport of large payloads in pieces, between one server and many clients.

It knows nothing of models, rules or rounds. A server's logic implements `Service`, and a `GrpcServer` or an
`InProcessServer` serves it. A client opens a `GrpcConnection` or an `InProcessConnection`.

Reading order: `messages` (control messages), `framing` (one piece), `arrow_schema` (the header of an Arrow stream of
pieces), `pieces` (a payload), `endpoint` (the server's sessions), `flow_control`, then the two transports. gRPC is
imported with the first gRPC server or connection. The module `piece_format` is public, too.
"""

from typing import TYPE_CHECKING

from flcore_transport.endpoint import ClientLink, IncomingUpload, Service
from flcore_transport.errors import (
    ConnectionLost,
    PieceError,
    ProtocolMismatch,
    Refused,
    TransportError,
)
from flcore_transport.flow_control import WINDOW_PIECES
from flcore_transport.framing import Buffer
from flcore_transport.grpc_channel import UNAUTHENTICATED_BYTES, split_address
from flcore_transport.identity import Identity, PeerCertificate, ServerTls, TlsKeys
from flcore_transport.in_process import InProcessConnection, InProcessServer
from flcore_transport.messages import (
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Receipt,
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

if TYPE_CHECKING:
    from flcore_transport.grpc_client import GrpcConnection
    from flcore_transport.grpc_server import GrpcServer

__all__ = [
    "UNAUTHENTICATED_BYTES",
    "WINDOW_PIECES",
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
    "Receipt",
    "Refused",
    "ServerTls",
    "Service",
    "TaskAssignment",
    "TlsKeys",
    "TransportError",
    "UploadRequest",
    "Welcome",
    "Withdrawal",
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
