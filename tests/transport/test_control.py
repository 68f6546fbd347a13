"""The control messages: their protobuf form, and that the generated code is fresh."""

import subprocess
import sys
from pathlib import Path

import pytest
from flcore_layout import Layout, PayloadPart, Segment
from flcore_transport import (
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    Join,
    Receipt,
    Refused,
    TaskAssignment,
    UploadRequest,
    Welcome,
    Withdrawal,
)
from flcore_transport import control_pb2 as pb
from flcore_transport.control import (
    decode_from_server,
    decode_message,
    decode_reply,
    encode_from_server,
    encode_message,
    encode_reply,
)
from flcore_transport.messages import PROTOCOL, Credit, Refusal

LAYOUT = Layout((PayloadPart("model", (Segment("float32", 512), Segment("int8", 0))), PayloadPart("mask", ())))
MESSAGES = [
    Join("hospital-a", "0a1b", b"\x00\xff", 7),
    DownloadRequest("secret", 2**40, 3),
    UploadRequest("secret", 5, b"{}", LAYOUT),
    Failure("secret", 5, "out of memory"),
    Receipt(9),
    Refusal("late", "the round has closed"),
]
FROM_SERVER = [
    Welcome("secret", b"{}"),
    TaskAssignment(3, b"{}", LAYOUT, "id-1"),
    TaskAssignment(4, b""),
    Withdrawal(2**40),
    Goodbye("done"),
    Goodbye("no quorum", failed=True),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_the_journey(message: object) -> None:
    assert decode_message(type(message), encode_message(message)) == message


@pytest.mark.parametrize("message", FROM_SERVER)
def test_what_a_session_carries_survives_the_journey(message: FromServer) -> None:
    assert decode_from_server(encode_from_server(message)) == message


@pytest.mark.parametrize("reply", [Credit(0, 4), Receipt(3)])
def test_replies_to_an_upload_survive_the_journey(reply: Credit | Receipt) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("data", [b"\xff", b"\x08", b"\x12\x7f"])
def test_bytes_that_do_not_parse_are_refused(data: bytes) -> None:
    with pytest.raises(Refused, match="do not parse") as caught:
        decode_message(Join, data)
    assert caught.value.kind == "malformed"


def test_a_message_of_an_unknown_kind_is_refused() -> None:
    for decoder in (decode_from_server, decode_reply):
        with pytest.raises(Refused, match="does not know"):
            decoder(b"")


def test_the_first_message_has_golden_bytes() -> None:
    golden = b"\x08\x02\x12\nhospital-a\x1a\x040a1b\x22\x02{}"
    assert encode_message(Join("hospital-a", "0a1b", b"{}")) == golden
    assert PROTOCOL == 2


def test_the_generated_code_is_fresh() -> None:
    pytest.importorskip("grpc_tools")
    program = (
        "import generate_control, flcore_transport.control_pb2 as pb, sys;"
        "sys.exit(generate_control.descriptor() != pb.DESCRIPTOR.serialized_pb)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "transport", check=False)
    assert done.returncode == 0, "control.proto has changed: run `make proto`"


def test_a_message_is_measured_before_it_is_parsed() -> None:
    data = pb.UploadRequest(content=bytes(1 << 20)).SerializeToString()
    with pytest.raises(Refused, match="a control message has at most 1048576 bytes, not 1048580"):
        decode_message(UploadRequest, data)


def test_a_layout_of_a_million_parts_is_refused_before_it_is_built() -> None:
    data = pb.UploadRequest(layout=pb.Layout(parts=[pb.PayloadPart()] * 100_000)).SerializeToString()
    with pytest.raises(Refused, match="at most 64 parts"):
        decode_message(UploadRequest, data)
