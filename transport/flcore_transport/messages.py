"""The control messages between server and client: everything but the pieces.

`content` is opaque bytes of the layer above. gRPC sends these values as protobuf (`control`); the in-process transport
passes them as they are.

An *assignment* asks one client for an answer and is identified by its number. Several can be open at once; a client
does them in the order of their arrival. An assignment is open until its answer has a receipt, the client has reported a
failure, or the server has withdrawn it. After each welcome the server sends all open assignments again, so a client
forgets the ones that it had.
"""

from dataclasses import dataclass

from flcore_layout import ALIGNMENT, DTYPES, Dtype, Layout

from flcore_transport.errors import PieceError, Refused

PROTOCOL = 4
"""The protocol version of messages, pieces and their sequence. Both ends must have the same one."""

MAX_ASK_CONTENT_BYTES = 256 << 10
"""The most bytes of the content of an ask, and of its reply."""

MAX_ASK_BODY_BYTES = 1 << 20
"""The most bytes of the body of an ask, and of its reply: a part of a file."""


def wire_dtype(dtype: str, elements: int = 0) -> Dtype:
    """Return the row of `dtype` in `DTYPES`, or raise `PieceError` if dtype or number of elements is invalid."""
    row = DTYPES.get(dtype)
    if row is None or elements < 0 or elements % ALIGNMENT:
        raise PieceError(
            f"a segment has a known dtype and a multiple of {ALIGNMENT} elements, not {elements} of {dtype!r}"
        )
    return row


@dataclass(frozen=True, slots=True)
class Join:
    """Client to server, the first message: opens a session.

    `instance` is a random id of the client's process. It stays the same over reconnects, so the server can tell a
    reconnect from a second client of the same name.
    """

    client: str
    instance: str
    content: bytes = b""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server to client: the client is admitted. Its later calls carry `session_secret`."""

    session_secret: str
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class TaskAssignment:
    """Server to client: a request for an answer.

    The client downloads the payload, whose layout is `payload`, unless it has one with the same `payload_id` already.
    All its calls for the assignment carry `token`, by which the server knows that they belong to it.
    """

    assignment_id: int
    content: bytes
    payload: Layout = Layout()
    payload_id: str = ""
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Server to client: the assignment is withdrawn. The client does not start it, and its answer would be refused."""

    assignment_id: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Server to client: the job has ended, and why. `failed` says whether it failed."""

    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Server to client: the stream has carried `sent` messages before this one. gRPC's connection handles it itself."""

    sent: int


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """Client to server: requests the pieces of an assignment's payload, from `first_piece` on."""

    session_secret: str
    assignment_id: int
    first_piece: int = 0
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """Client to server: announces an answer. The pieces of `layout` follow."""

    session_secret: str
    assignment_id: int
    content: bytes
    layout: Layout = Layout()
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Credit:
    """Server to client: the first `received` pieces have arrived; the client may send pieces below `allowed`.

    Both count from the start of the payload, so a credit also tells where an interrupted upload resumes.
    """

    received: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Server to client: the answer is committed. A client that loses the receipt uploads again and gets another."""

    assignment_id: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Client to server: the assignment could not be done, and why."""

    session_secret: str
    assignment_id: int
    message: str
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Server to client: the call is refused, and why. The client raises it as `Refused`."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Client to server, without a session: a request. `content` says what is asked; `body` is a part of a file."""

    content: bytes
    body: bytes = b""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Reply:
    """Server to client: the answer to an `Ask`."""

    content: bytes
    body: bytes = b""


def require_ask_size(message: Ask | Reply) -> None:
    """Raise `Refused` if the content or the body of an ask, or of a reply, is too large."""
    for part, limit in (("content", MAX_ASK_CONTENT_BYTES), ("body", MAX_ASK_BODY_BYTES)):
        size = len(getattr(message, part))
        if size > limit:
            kind = type(message).__name__.lower()
            raise Refused("too-large", f"the {part} of {kind}: expected at most {limit} bytes, got {size}; send less")


FromServer = Welcome | TaskAssignment | Withdrawal | Goodbye
"""The messages of a session."""

SessionMessage = FromServer | Heartbeat
"""The messages on a session's stream over gRPC."""

UploadReply = Credit | Receipt
"""The messages on an upload's stream back to the client."""
