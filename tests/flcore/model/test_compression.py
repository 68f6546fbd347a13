"""Payloads in narrower dtypes: what arrives, what is refused, and that nothing is lost for good."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flcore_transport import Inbox, Outbox

from flcore import Arrays, Model, ModelSpec, NonFinite, OutOfBounds
from flcore.model.compression import Compressor, Decompressor, ErrorFeedback
from flcore.model.model import NamedArrays
from flcore.model.wire_format import WireFormat

SIZE = 1_100_000
RNG = np.random.default_rng(5)
ARRAYS: Arrays = {
    "w": RNG.standard_normal(SIZE).astype(np.float32),
    "double": RNG.standard_normal((3, 5)),
    "half": RNG.standard_normal(700).astype(ml_dtypes.bfloat16),
    "steps": np.arange(10),
    "none": np.zeros((0, 3), np.float32),
}
SPEC = ModelSpec.of(ARRAYS)
NARROW = ["float16", "bfloat16", "int8[32]", "int8[64]", "int8[128]", "int8[256]"]


def arrived(wire_format: WireFormat, source: Any) -> Arrays:
    """What the other end has of a payload, piece by piece over the wire."""
    outbox, model = Outbox(source), Model(wire_format.spec)
    inbox = Inbox(wire_format.layout, Decompressor(wire_format, model))
    for index in range(len(outbox.piece_ranges)):
        inbox.accept(outbox.piece(index))
    inbox.finish()
    return model.arrays()


def test_only_floats_that_are_wider_are_narrowed() -> None:
    assert WireFormat.compressed(SPEC, None) == WireFormat.uncompressed(SPEC)
    assert WireFormat.compressed(SPEC, "float16").dtypes == ("float16", "float16", "bfloat16", "int64")
    assert WireFormat.compressed(SPEC, "int8[64]").dtypes == ("int8[64]", "int8[64]", "int8[64]", "int64")
    assert WireFormat.compressed(SPEC, "int8[64]").nbytes < SPEC.nbytes * 0.27


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", [NamedArrays, lambda _, arrays: Model.of(arrays)])
def test_sixteen_bits_arrive_rounded_to_nearest(dtype: str, kind: Any) -> None:
    rounded = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    found = arrived(
        WireFormat.compressed(SPEC, dtype), Compressor(WireFormat.compressed(SPEC, dtype), kind(SPEC, ARRAYS))
    )
    assert found["w"].tobytes() == ARRAYS["w"].astype(rounded).astype(np.float32).tobytes()
    assert np.array_equal(found["double"], ARRAYS["double"].astype(np.float32).astype(rounded).astype(np.float64))
    assert found["half"].tobytes() == ARRAYS["half"].tobytes()
    assert found["steps"].tolist() == list(range(10))


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_left_out_comes_with_the_next_update(dtype: str) -> None:
    wire_format = WireFormat.compressed(SPEC, dtype)
    feedback, sent, meant = ErrorFeedback(wire_format), np.zeros(SIZE), np.zeros(SIZE)
    for round_ in range(4):
        values = RNG.standard_normal(SIZE).astype(np.float32) * np.float32(10.0**-round_)
        source = Compressor(wire_format, NamedArrays(SPEC, {**ARRAYS, "w": values}), feedback)
        meant += values
        sent += decoded_w(wire_format, source)
        feedback.record(source)
    piece = wire_format.pieces[0]
    left = np.concatenate([feedback.residual(piece) for piece in wire_format.pieces if piece.segment == 0])[:SIZE]
    assert np.abs(sent + left - meant).max() < 1e-5, "nothing is lost but float32 rounding"
    assert np.abs(left).max() < 0.05
    assert feedback.residual(piece).shape == (piece.count,)


def decoded_w(wire_format: WireFormat, source: Compressor) -> Any:
    """What arrives of the first segment, without the rounding to the model's own dtype that a model adds."""
    return arrived(wire_format, source)["w"].astype(np.float64)


def test_an_update_that_was_not_taken_leaves_the_feedback_as_it_was() -> None:
    wire_format = WireFormat.compressed(SPEC, "int8[256]")
    feedback = ErrorFeedback(wire_format)
    source = Compressor(wire_format, NamedArrays(SPEC, ARRAYS), feedback)
    first = [Outbox(source).piece(index) for index in range(len(wire_format.pieces))]
    assert [Outbox(source).piece(index) for index in range(len(wire_format.pieces))] == first, (
        "sent again, it is the same"
    )
    feedback.record(source)
    assert [Outbox(source).piece(index) for index in range(len(wire_format.pieces))] != first


@pytest.mark.parametrize(
    ("dtype", "value", "error", "message"),
    [
        ("int8[64]", np.nan, NonFinite, "tensor 'w': element 600000 is nan"),
        ("float16", 70_000.0, OutOfBounds, "tensor 'w': element 600000 is 70000.0, which float16 does not hold"),
    ],
)
def test_what_a_dtype_cannot_hold_is_not_sent(dtype: str, value: float, error: Any, message: str) -> None:
    values = np.zeros(SIZE, np.float32)
    values[600_000] = value
    source = Compressor(WireFormat.compressed(SPEC, dtype), NamedArrays(SPEC, {**ARRAYS, "w": values}))
    with pytest.raises(error, match=message):
        for index in range(len(WireFormat.compressed(SPEC, dtype).pieces)):
            source.read(WireFormat.compressed(SPEC, dtype).pieces[index])
