"""The vocabulary of the two ends: what is said beside the pieces.

`content` is opaque bytes of the layer above. Both transports pass these values; gRPC as protobuf (`control`), the
in-process twin as they are. An *assignment* is what the server asks of one client, known by its number. Several may be
open at once, and a client does them in the order in which they came. An order is open until its answer has a receipt,
or its client has reported a failure, or the server has withdrawn it. A welcome begins the list of open orders anew:
after it the server sends all of them again.
"""

from dataclasses import dataclass

from flcore_layout import ALIGNMENT, DTYPES, Dtype, Layout

from flcore_transport.errors import PieceError

PROTOCOL = 2
"""The version of the protocol: of the messages, the pieces and their sequence. Both ends must have the same."""


def wire_dtype(dtype: str, elements: int = 0) -> Dtype:
    """Return the row of `dtype`, or raise `PieceError` where no segment has that dtype or so many elements."""
    row = DTYPES.get(dtype)
    if row is None or elements < 0 or elements % ALIGNMENT:
        raise PieceError(
            f"a segment has a known dtype and a multiple of {ALIGNMENT} elements, not {elements} of {dtype!r}"
        )
    return row


@dataclass(frozen=True, slots=True)
class Join:
    """Client to server, first of all: who I am. `instance` is drawn anew by each process, and kept over reconnects."""

    client: str
    instance: str
    content: bytes = b""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server to client: you are in. `session` is the secret that the client's later calls carry."""

    session: str
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class TaskAssignment:
    """Server to client: do this. `payload` can be fetched; `payload_id` tells whether the client has it already."""

    assignment_id: int
    content: bytes
    payload: Layout = Layout()
    payload_id: str = ""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Server to client: this order is over. It is not begun any more, and an answer to it is not taken."""

    assignment_id: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Server to client: it is over, and why. `failed` says that what the client took part in did not succeed."""

    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """Client to server: send me the payload of this order, from this piece on."""

    session: str
    assignment_id: int
    first_piece: int = 0


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """Client to server: here comes the answer to this order; the pieces of `layout` follow."""

    session: str
    assignment_id: int
    content: bytes
    layout: Layout = Layout()


@dataclass(frozen=True, slots=True)
class Credit:
    """Server to client: I hold the first `received` pieces; you may send up to the first `allowed`."""

    received: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Server to client: the answer to this order is in, whole. It can be asked for again by offering again."""

    assignment_id: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Client to server: I could not do this order, and why."""

    session: str
    assignment_id: int
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Server to client: no, and why. It ends the call that it answers (`Refused` at the other end)."""

    kind: str
    message: str


FromServer = Welcome | TaskAssignment | Withdrawal | Goodbye
"""What a session's stream carries."""

UploadReply = Credit | Receipt
"""What the stream back to an uploading client carries."""
