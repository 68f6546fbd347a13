"""The messages as protobuf bytes, and back.

Each dataclass of `messages` has a protobuf message of the same name with the same fields, so one recursive conversion
serves all of them. Bytes that do not parse are refused. No other module imports protobuf.
"""

import re
from dataclasses import fields
from typing import Any, TypeVar

from flcore_layout import Layout, PayloadPart, Segment
from google.protobuf.message import DecodeError, Message

from flcore_transport import control_pb2 as pb
from flcore_transport import messages
from flcore_transport.errors import Refused
from flcore_transport.messages import FromServer, UploadReply

M = TypeVar("M")

MAX_REPEATED = 64
"""The most parts of a layout, and the most segments of a part."""

MAX_MESSAGE_BYTES = 1 << 20
"""The largest message that a server parses, as a parsed message can take thirty times the memory of its bytes.

A server's messages on a session's stream may be larger: a welcome names all tensors. gRPC's limit holds for them.
"""

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
        messages.DownloadRequest,
        messages.UploadRequest,
        messages.Credit,
        messages.Receipt,
        messages.Failure,
        messages.Refusal,
    )
}


def encode_message(message: object) -> bytes:
    """Return the protobuf bytes of one message."""
    return bytes(_to_pb(message).SerializeToString())


def decode_message(message_type: type[M], data: bytes) -> M:
    """Return the message of `message_type` that `data` encodes, or raise `Refused`."""
    require_size(len(data))
    decoded = _from_pb(_parse(getattr(pb, message_type.__name__)(), data))
    assert isinstance(decoded, message_type)  # noqa: S101 - for the type checker
    return decoded


def require_size(size: int) -> None:
    """Raise `Refused` if a control message is too large to be parsed."""
    if size > MAX_MESSAGE_BYTES:
        raise Refused("malformed", f"a control message has at most {MAX_MESSAGE_BYTES} bytes, not {size}")


def encode_from_server(message: FromServer) -> bytes:
    """Return the bytes of a message on a session's stream."""
    return pb.FromServer(**{_field_name(message): _to_pb(message)}).SerializeToString()


def decode_from_server(data: bytes) -> FromServer:
    """Return the message on a session's stream that `data` encodes, or raise `Refused`."""
    return _only_field(pb.FromServer(), data)  # type: ignore[no-any-return]


def encode_reply(reply: UploadReply) -> bytes:
    """Return the bytes of a message on an upload's stream back to the client."""
    return pb.UploadReply(**{_field_name(reply): _to_pb(reply)}).SerializeToString()


def decode_reply(data: bytes) -> UploadReply:
    """Return the message on an upload's stream that `data` encodes, or raise `Refused`."""
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
    name = _parse(message, data).WhichOneof("message")
    if name is None:  # a newer server's message is an unknown field, which protobuf skips
        raise Refused("malformed", f"{message.DESCRIPTOR.name}: a message of a kind that this version does not know")
    return _from_pb(getattr(message, name))


def _parse(message: Message, data: bytes) -> Message:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise Refused("malformed", f"{message.DESCRIPTOR.name}: the bytes do not parse: {error}") from error
    return message
