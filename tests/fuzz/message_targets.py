"""Control messages as a hostile peer sends them: each by itself, the layout of an upload, and a join.

A hostile peer knows how to compute a checksum. The inputs have the right one, but for one in fifty, so that they reach
the parser.
"""

import random
from collections.abc import Callable
from typing import Any

from flcore_layout import DTYPES, Layout, PayloadPart, Segment
from flcore_transport.control import (
    decode_from_server,
    decode_message,
    decode_reply,
    encode_from_server,
    encode_message,
    encode_reply,
)
from flcore_transport.endpoint import Endpoint
from flcore_transport.framing import CHECKSUM, checksum_of
from flcore_transport.messages import (
    PROTOCOL,
    Ask,
    Credit,
    DownloadRequest,
    Failure,
    Goodbye,
    Heartbeat,
    Join,
    Receipt,
    Refusal,
    Reply,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
)
from flcore_transport.piece_format import PieceRanges, arrow_metadata

from flcore.job.job import Job
from flcore.job.messages import JoinContent
from flcore.server.admission import Admission
from tests.fuzz.mutations import Field, edge, join_fields, mutate_json, mutate_protobuf, split_fields
from tests.fuzz.target import require, strict_json

LAYOUT = Layout((PayloadPart("model", (Segment("float32", 512), Segment("int8[64]", 0))), PayloadPart("mask", ())))
CONTENT = b'{"returns":"delta","attempt":"0a","weight":2.5,"metrics":{"loss":0.5}}'
MESSAGES: list[Any] = [
    Join("hospital-a", "0a1b", b'{"contract":"{}"}'),
    DownloadRequest("secret", 2**40, 3),
    UploadRequest("secret", 5, CONTENT, LAYOUT),
    UploadRequest("secret", 5, CONTENT),
    Failure("secret", 5, "out of memory: é"),
    Receipt(9),
    Refusal("late", "the round has closed"),
    Ask(CONTENT, b"part of a file"),
    Reply(CONTENT, b"part of a file"),
]
FROM_SERVER: list[Any] = [
    Welcome("secret", b'{"tensors":[]}'),
    TaskAssignment(3, b"{}", LAYOUT, "id-1"),
    TaskAssignment(4, b""),
    Withdrawal(2**40),
    Heartbeat(17),
    Goodbye("done"),
    Goodbye("no quorum", failed=True),
]
REPLIES: list[Any] = [Credit(0, 4), Credit(2**33, 2**33 + 4), Receipt(3)]


class Messages:
    """Every control message, at both ends."""

    name, share = "control messages", 300

    def __init__(self) -> None:
        self._valid: list[tuple[bytes, Callable[[bytes], Any], Callable[[Any], bytes]]] = [
            *((encode_message(each), _decoder(type(each)), encode_message) for each in MESSAGES),
            *((encode_from_server(each), decode_from_server, encode_from_server) for each in FROM_SERVER),
            *((encode_reply(each), decode_reply, encode_reply) for each in REPLIES),
        ]
        self.cases = len(self._valid)

    def make(self, draw: random.Random, case: int) -> bytes:
        data = self._valid[case][0]
        return mutate_sealed(draw, data, draw.choice(self._valid)[0]) if draw.random() < 0.98 else data

    def feed(self, case: int, data: bytes) -> None:
        _, decode, encode = self._valid[case]
        message = decode(data)
        if isinstance(message, Ask | Join) and message.protocol != PROTOCOL:
            return  # the endpoint refuses it
        require_encoding(message, encode(message), data)


def mutate_sealed(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Return a mutation of a message with its checksum; one in fifty with the checksum of the message itself."""
    body = mutate_protobuf(draw, data[: -CHECKSUM.size], other[: -CHECKSUM.size])
    return body + (checksum_of(body) if draw.random() < 0.98 else data[-CHECKSUM.size :])


def require_encoding(message: Any, encoded: bytes, data: bytes) -> None:
    """Raise unless a message is encoded as it came, but for an empty layout, which may be left out."""
    encoded, data = encoded[: -CHECKSUM.size], data[: -CHECKSUM.size]
    if encoded != data and isinstance(message, UploadRequest):
        encoded = _without(encoded, (4, 2, b""))
    elif encoded != data and isinstance(message, TaskAssignment):
        ((number, kind, nested),) = split_fields(encoded) or [(0, 0, b"")]
        encoded = join_fields([(number, kind, _without(nested, (3, 2, b"")))])
    require(encoded == data, f"the message is encoded otherwise: {message!r:.200}")


def _without(encoded: bytes, field: Field) -> bytes:
    return join_fields([each for each in split_fields(encoded) or [] if each != field])


def _decoder(message_type: type[Any]) -> Callable[[bytes], Any]:
    return lambda data: decode_message(message_type, data)


class Layouts:
    """Layouts as an upload announces them, of up to 2^64 elements, and their pieces."""

    name, share, cases = "layouts", 50, 1

    def make(self, draw: random.Random, case: int) -> bytes:
        def segment() -> Segment:
            dtype = draw.choice((*DTYPES, "float32", "int4", "", "FLOAT32", "int8[16]"))
            elements = draw.choice((edge(draw), edge(draw) // 256 * 256, 256, 524_288 + 256))
            return Segment(dtype, elements)

        def part() -> PayloadPart:
            count = draw.choice((0, 1, 2, 3, 4)) if draw.random() < 0.9 else draw.choice((64, 65))
            return PayloadPart(draw.choice(("model", "", "x" * 300)), tuple(segment() for _ in range(count)))

        layout = Layout(tuple(part() for _ in range(draw.choice((0, 1, 1, 2, 2, 3)) if draw.random() < 0.95 else 65)))
        data = encode_message(UploadRequest("secret", 5, b"{}", layout))
        return mutate_sealed(draw, data, data) if draw.random() < 0.3 else data

    def feed(self, case: int, data: bytes) -> None:
        request = decode_message(UploadRequest, data)
        require_encoding(request, encode_message(request), data)
        pieces = PieceRanges(request.layout)
        count = len(pieces)
        segments = [(p, s, each) for p, part in enumerate(request.layout.parts) for s, each in enumerate(part.segments)]
        filled = [(p, s, each) for p, s, each in segments if each.elements]
        require((count > 0) == bool(filled), "pieces without elements, or elements without pieces")
        if not count:
            return
        for index, place in ((0, filled[0]), (count - 1, filled[-1])):
            piece = pieces[index]
            expected = (*place[:2], place[2].dtype)
            require((piece.part, piece.segment, piece.dtype) == expected, "a piece of another segment")
            require(piece.count > 0 and piece.first + piece.count <= place[2].elements, "a piece beyond its segment")
            arrow_metadata(piece.dtype, piece.count)
        require(pieces[0].first == 0, "the first piece begins late")
        last = pieces[count - 1]
        require(last.first + last.count == filled[-1][2].elements, "the last piece ends early")


class _Service:
    """As much of a server as a join reaches."""

    def __init__(self, job: Job) -> None:
        self._admission = Admission(job)

    def authorize(self, client: str) -> None:
        self._admission.require_invited(client)

    def join_refused(self, client: str, reason: str) -> None: ...

    def admit(self, client: str, content: bytes) -> bytes:
        self._admission.require(client, content)
        return b"{}"

    def client_connected(self, client: str, link: Any) -> None: ...


class _Stream:
    def send(self, message: Any) -> None: ...

    def end(self, error: Exception) -> None: ...


class Joins:
    """A join, from its bytes to the endpoint's session: protocol, instance, name and contract."""

    name, share, cases = "joins", 100, 1

    def __init__(self, job: Job) -> None:
        self._service, self._contract = _Service(job), job.contract.to_json()
        self._content = JoinContent(contract=self._contract, code_digest="0" * 64, version="0.1.0").to_bytes()

    def make(self, draw: random.Random, case: int) -> bytes:
        content, client = self._content, draw.choice(("one", "one", "two", "nobody", "", "a\nb", "x" * 5000, "é"))
        if draw.random() < 0.7:
            content = mutate_json(draw, content, self._content)
        elif draw.random() < 0.5:  # the contract within
            contract = mutate_json(draw, self._contract.encode(), self._content).decode("utf-8", "replace")
            content = JoinContent(contract=contract, code_digest="", version="").to_bytes()
        instance = draw.choice(("0a1b", "", "x" * 64, "x" * 65))
        data = encode_message(Join(client, instance, content, draw.choice((PROTOCOL, PROTOCOL, 1, 2**32 - 1))))
        return mutate_sealed(draw, data, data) if draw.random() < 0.4 else data

    def feed(self, case: int, data: bytes) -> None:
        join = decode_message(Join, data)
        session = Endpoint(self._service).join(join, _Stream())  # type: ignore[arg-type]
        require(encode_message(join) == data, "the join is encoded otherwise")
        require(session.client in ("one", "two"), "a stranger has joined")
        require(strict_json(join.content)["contract"] == self._contract, "another contract has joined")
