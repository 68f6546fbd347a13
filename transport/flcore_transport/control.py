"""The messages as protobuf bytes with a checksum, and back.

    message  protobuf bytes | checksum u64

The checksum is xxh3 (64 bits) over the protobuf bytes, little-endian, as that of a piece. In plaintext the only other
one is TCP's, which misses about one corrupt segment in 65,536. A flipped bit in a weight or in a metric would change
the model or the history, and no other check would see it.

Each dataclass of `messages` has a protobuf message of the same name with the same fields, so one recursive conversion
serves all of them. Bytes that do not parse are refused, and so are bytes that protobuf would not write for the same
fields: unknown fields, fields in another order or twice, overlong numbers. Only an empty layout has two forms: it may
be left out. No other module imports protobuf.
"""

import re
from dataclasses import fields
from typing import Any, TypeVar

from flcore_layout import Layout, PayloadPart, Segment
from google.protobuf.message import DecodeError, Message

from flcore_transport import control_pb2 as pb
from flcore_transport import messages
from flcore_transport.errors import CorruptMessage, Refused
from flcore_transport.framing import CHECKSUM, checksum_of
from flcore_transport.messages import SessionMessage, UploadReply

M = TypeVar("M")

MAX_REPEATED = 64
"""The most parts of a layout, and the most segments of a part."""

MAX_MESSAGE_BYTES = 1 << 20
"""The largest message that a server parses, as a parsed message can take thirty times the memory of its bytes.

A server's messages on a session's stream may be larger: a welcome names all tensors. gRPC's limit holds for them.
"""

MAX_ASK_BYTES = messages.MAX_ASK_CONTENT_BYTES + messages.MAX_ASK_BODY_BYTES + 64
"""The largest ask or reply that is parsed. It has two fields of bytes, so parsing takes no more than their copies."""

_MESSAGE_CLASSES: dict[str, type[Any]] = {
    message_type.__name__: message_type
    for message_type in (
        Segment,
        PayloadPart,
        Layout,
        messages.Join,
        messages.Welcome,
        messages.TaskAssignment,
        messages.Withdrawal,
        messages.Goodbye,
        messages.Heartbeat,
        messages.DownloadRequest,
        messages.UploadRequest,
        messages.Credit,
        messages.Receipt,
        messages.Failure,
        messages.Ask,
        messages.Reply,
        messages.Refusal,
    )
}


def encode_message(message: object) -> bytes:
    """Return the bytes of one message."""
    return _seal(_to_pb(message))


def decode_message(message_type: type[M], data: bytes) -> M:
    """Return the message of `message_type` that `data` encodes, or raise `CorruptMessage` or `Refused`."""
    require_size(len(data), MAX_ASK_BYTES if message_type in (messages.Ask, messages.Reply) else MAX_MESSAGE_BYTES)
    message = getattr(pb, message_type.__name__)()
    body = _unseal(message, data)
    parsed = _parse(message, body)
    decoded = _from_pb(parsed)
    assert isinstance(decoded, message_type)  # noqa: S101 - for the type checker
    # A join or an ask of another version may have other fields. The server refuses it, and names the two versions.
    if getattr(decoded, "protocol", messages.PROTOCOL) == messages.PROTOCOL:
        _require_canonical(parsed, body)
    return decoded


def require_size(size: int, limit: int = MAX_MESSAGE_BYTES) -> None:
    """Raise `Refused` if a control message is too large to be parsed."""
    if size > limit:
        raise Refused("malformed", f"a control message has at most {limit} bytes, not {size}")


def encode_from_server(message: SessionMessage) -> bytes:
    """Return the bytes of a message on a session's stream."""
    return _seal(pb.FromServer(**{_field_name(message): _to_pb(message)}))


def decode_from_server(data: bytes) -> SessionMessage:
    """Return the message on a session's stream that `data` encodes, or raise `CorruptMessage` or `Refused`."""
    return _only_field(pb.FromServer(), data)  # type: ignore[no-any-return]


def encode_reply(reply: UploadReply) -> bytes:
    """Return the bytes of a message on an upload's stream back to the client."""
    return _seal(pb.UploadReply(**{_field_name(reply): _to_pb(reply)}))


def decode_reply(data: bytes) -> UploadReply:
    """Return the message on an upload's stream that `data` encodes, or raise `CorruptMessage` or `Refused`."""
    return _only_field(pb.UploadReply(), data)  # type: ignore[no-any-return]


def _field_name(message: object) -> str:
    """Return the name of the field that carries a message: its class's name in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(message).__name__).lower()


def _to_pb(value: Any) -> Any:
    if type(value).__name__ in _MESSAGE_CLASSES:
        message_type = getattr(pb, type(value).__name__)
        return message_type(**{field.name: _to_pb(getattr(value, field.name)) for field in fields(value)})
    return [_to_pb(item) for item in value] if isinstance(value, tuple) else value


def _from_pb(value: Any) -> Any:
    if isinstance(value, Message):
        message_type = _MESSAGE_CLASSES[value.DESCRIPTOR.name]
        return message_type(**{field.name: _from_pb(getattr(value, field.name)) for field in fields(message_type)})
    if isinstance(value, (int, str, bytes)):
        return value
    if len(value) > MAX_REPEATED:
        raise Refused("malformed", f"a layout has at most {MAX_REPEATED} parts and segments a part, not {len(value)}")
    return tuple(_from_pb(item) for item in value)


def _only_field(message: Message, data: bytes) -> Any:
    body = _unseal(message, data)
    name = _parse(message, body).WhichOneof("message")
    if name is None:  # a newer server's message is an unknown field, which protobuf skips
        raise Refused("malformed", f"{message.DESCRIPTOR.name}: a message of a kind that this version does not know")
    decoded = _from_pb(getattr(message, name))
    _require_canonical(message, body)
    return decoded


def _require_canonical(message: Message, body: bytes) -> None:
    """Raise `Refused` unless `body` is what protobuf writes for the known fields of a parsed message."""
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != body:
        raise Refused("malformed", f"{message.DESCRIPTOR.name}: expected protobuf in canonical form, got another one")


def _seal(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data + checksum_of(data)


def _unseal(message: Message, data: bytes) -> bytes:
    """Return the bytes of `message` that `data` carries, or raise `CorruptMessage`."""
    body, checksum = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
    if checksum != checksum_of(body):  # a shorter checksum is another one, too
        raise CorruptMessage(
            f"{message.DESCRIPTOR.name}: corrupt, its checksum does not match its {len(data)} bytes. The network has "
            "changed them, or the other end has another version of flcore"
        )
    return body


def _parse(message: Message, body: bytes) -> Message:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Refused("malformed", f"{message.DESCRIPTOR.name}: the bytes do not parse: {error}") from error
    return message
