"""The control messages: their protobuf form, and that the generated code is fresh."""

import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
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
from flcore_transport.errors import ConnectionLost, CorruptMessage
from flcore_transport.messages import PROTOCOL, Ask, Credit, Heartbeat, Refusal, Reply

LAYOUT = Layout((PayloadPart("model", (Segment("float32", 512), Segment("int8", 0))), PayloadPart("mask", ())))
MESSAGES = [
    Join("hospital-a", "0a1b", b"\x00\xff", 7),
    DownloadRequest("secret", 2**40, 3, b"\x00\xff" * 16),
    UploadRequest("secret", 5, b"{}", LAYOUT, bytes(32)),
    Failure("secret", 5, "out of memory", bytes(range(32))),
    Receipt(9),
    Refusal("late", "the round has closed"),
    Ask(b"{}", b"\x00\xff" * 100),
    Ask(b"", protocol=9),
    Reply(b"{}", b"\x00"),
]
FROM_SERVER = [
    Welcome("secret", b"{}"),
    TaskAssignment(3, b"{}", LAYOUT, "id-1", b"\xff" * 32),
    TaskAssignment(4, b""),
    Withdrawal(2**40),
    Heartbeat(17),
    Goodbye("done"),
    Goodbye("no quorum", failed=True),
]
ROOT = Path(__file__).parents[2]


def sealed(data: bytes) -> bytes:
    return data + xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")


def unsealed(data: bytes) -> bytes:
    assert sealed(data[:-8]) == data
    return data[:-8]


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
        decode_message(Join, sealed(data))
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x05\x0a\x06secret",  # fields in another order
        b"\x0a\x06secret\x10\x05\x10\x06",  # a field twice
        b"\x0a\x06secret\x10\x85\x00",  # an overlong number
        b"\x0a\x86\x00secret\x10\x05",  # an overlong length
        b"\x8a\x00\x06secret\x10\x05",  # an overlong key
        b"\x0a\x06secret\x10\x05\x18\x00",  # a default that is written out
        b"\x0a\x06secret\x10\x05\x28\x01",  # an unknown field
        b"\x0a\x06secret\x10\x05\x4b\x4c",  # an unknown group
        b"\x0a\x06secret\x10\x05\x1d\x00\x00\x00\x00",  # a known field of another type
    ],
)
def test_a_message_that_is_not_in_canonical_form_is_refused(data: bytes) -> None:
    assert decode_message(DownloadRequest, sealed(b"\x0a\x06secret\x10\x05")) == DownloadRequest("secret", 5)
    with pytest.raises(Refused, match="DownloadRequest: expected protobuf in canonical form") as caught:
        decode_message(DownloadRequest, sealed(data))
    assert caught.value.kind == "malformed"


def test_unknown_fields_within_a_message_are_refused_too() -> None:
    sound = unsealed(encode_from_server(Withdrawal(3)))
    assert sound == b"\x22\x02\x08\x03"
    for data in (b"\x22\x04\x08\x03\x10\x01", sound + sound, sound + b"\x28\x01", b"\x0a\x00" + sound):
        with pytest.raises(Refused, match="FromServer: expected protobuf in canonical form"):
            decode_from_server(sealed(data))
    with pytest.raises(Refused, match="UploadReply: expected protobuf in canonical form"):
        decode_reply(sealed(unsealed(encode_reply(Receipt(3))) + b"\x18\x01"))


def test_an_empty_layout_may_be_left_out() -> None:
    request = UploadRequest("secret", 5, b"{}")
    without = unsealed(encode_message(request)).removesuffix(b"\x22\0")
    assert decode_message(UploadRequest, sealed(without)) == request and sealed(without) != encode_message(request)


def test_a_join_of_another_protocol_version_is_told_by_its_version_even_if_it_has_other_fields() -> None:
    other = unsealed(encode_message(Join("a", "b", protocol=PROTOCOL + 1))) + b"\x28\x01"
    assert decode_message(Join, sealed(other)).protocol == PROTOCOL + 1
    with pytest.raises(Refused, match="canonical"):
        decode_message(Join, sealed(unsealed(encode_message(Join("a", "b"))) + b"\x28\x01"))


@pytest.mark.parametrize("message", MESSAGES)
def test_each_flipped_bit_and_each_cut_of_a_message_is_detected(message: object) -> None:
    data = encode_message(message)
    flipped = (
        bytes(b ^ (1 << bit) * (i == at) for i, b in enumerate(data)) for at in range(len(data)) for bit in range(8)
    )
    for changed in (*flipped, *(data[:end] for end in range(len(data)))):
        with pytest.raises(CorruptMessage, match=f"{type(message).__name__}: corrupt, its checksum does not match"):
            decode_message(type(message), changed)
    assert issubclass(CorruptMessage, ConnectionLost), "the call is retried"


@pytest.mark.parametrize("message", FROM_SERVER)
def test_each_flipped_byte_of_what_a_session_carries_is_detected(message: FromServer) -> None:
    data = encode_from_server(message)
    for at in range(len(data)):
        with pytest.raises(CorruptMessage):
            decode_from_server(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])


def test_a_credit_does_not_become_a_receipt() -> None:
    data = encode_reply(Credit(3, 7))
    assert data[0] == 0x0A  # the tag of the field `credit`; 0x12 is that of `receipt`
    with pytest.raises(CorruptMessage):
        decode_reply(b"\x12" + data[1:])


def test_a_message_of_an_unknown_kind_is_refused() -> None:
    for decoder in (decode_from_server, decode_reply):
        with pytest.raises(Refused, match="does not know"):
            decoder(sealed(b""))


def test_the_first_message_has_golden_bytes() -> None:
    golden = b"\x08\x04\x12\nhospital-a\x1a\x040a1b\x22\x02{}"
    assert encode_message(Join("hospital-a", "0a1b", b"{}")) == golden + bytes.fromhex("b67daab4a72de9f0")
    version_3 = golden.replace(b"\x04", b"\x03", 1)
    assert encode_message(Join("hospital-a", "0a1b", b"{}", 3)) == version_3 + bytes.fromhex("45b80a476d381b86")
    assert PROTOCOL == 4


def test_an_ask_has_golden_bytes() -> None:
    golden = b"\x08\x04\x12\x02{}\x1a\x02\x00\xff"
    assert encode_message(Ask(b"{}", b"\x00\xff")) == golden + bytes.fromhex("fdbb7d9635731db8")


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
        decode_message(UploadRequest, sealed(data))
