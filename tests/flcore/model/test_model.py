"""Values over the flat space: as payloads and chunks, from flat models and from arrays that stay where they are.

A pool uses the memory of models that are gone again, and never while anybody can still see it.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from flcore_layout import SegmentRange
from flcore_transport import Buffer, Inbox, Outbox

from flcore import Arrays, Model, ModelSpec, SpecError
from flcore.model.chunks import copy_chunks
from flcore.model.model import ModelPool, NamedArrays

ARRAYS: Arrays = {
    "big": np.random.default_rng(0).standard_normal((700, 1001)).astype(np.float32),
    "scalar": np.array(3, np.int64),
    "empty": np.zeros((0, 5), np.float32),
    "half": np.linspace(-1, 1, 300).astype(np.float16),
    "brain": np.linspace(-1, 1, 257).astype(ml_dtypes.bfloat16),
    "counter": np.array([2**53, -(2**53)], np.int64),
    "double": np.array([[1e300]], np.float64),
    "byte": np.arange(256, dtype=np.uint8),
    "small": np.array([1.5], np.float32),
}


def same(found: Arrays, expected: Arrays) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == expected[name].dtype and np.array_equal(found[name], expected[name]) for name in expected
    )


def test_a_model_holds_what_it_was_made_of_and_hands_out_read_only_views() -> None:
    model = Model.of(ARRAYS)
    views = model.arrays()
    assert same(views, ARRAYS)
    assert views["scalar"].shape == () and views["empty"].shape == (0, 5)
    with pytest.raises(ValueError, match="read-only"):
        views["big"][0, 0] = 1
    assert np.shares_memory(views["big"], model.segments[0])


@pytest.mark.parametrize("flat", [True, False])
def test_a_payload_arrives_as_it_was_sent(flat: bool) -> None:
    spec = ModelSpec.of(ARRAYS)
    outbox = Outbox(Model.of(ARRAYS) if flat else NamedArrays(spec, ARRAYS))
    received = Model(spec)
    inbox = Inbox(received.layout, received)
    for index in range(len(outbox.piece_ranges)):
        inbox.accept(outbox.piece(index))
    inbox.finish()
    assert same(received.arrays(), ARRAYS)


def test_both_sources_make_the_same_pieces() -> None:
    spec = ModelSpec.of(ARRAYS)
    flat, named = Outbox(Model.of(ARRAYS)), Outbox(NamedArrays(spec, ARRAYS))
    assert len(flat.piece_ranges) == 7
    for index in range(len(flat.piece_ranges)):
        assert flat.piece(index) == named.piece(index)


def test_arrays_are_sent_from_their_own_memory_strided_ones_too() -> None:
    strided = np.arange(20, dtype=np.float32).reshape(4, 5).T
    arrays = {"w": strided, "v": np.arange(3, dtype=np.float32)}
    source = NamedArrays(ModelSpec.of(arrays), arrays)
    piece = Outbox(source).piece_ranges[0]
    data = b"".join(bytes(buffer) for buffer in source.read(piece))
    values = np.frombuffer(data, np.float32)
    assert values[:20].tolist() == strided.reshape(-1).tolist()
    assert not values[20:256].any() and values[256:259].tolist() == [0, 1, 2] and not values[259:].any()
    buffers = [np.frombuffer(buffer, np.uint8) for buffer in source.read(piece)]
    assert any(np.shares_memory(buffer, arrays["v"]) for buffer in buffers)


def test_chunks_are_views_of_a_flat_model_and_are_put_without_a_copy() -> None:
    model = Model.of(ARRAYS)
    chunk = model.chunk(0, 256, 512)
    assert np.shares_memory(chunk, model.segments[0])
    chunk[:] = 5
    model.put(0, 256, chunk)
    assert set(model.arrays()["big"].reshape(-1)[256:512].tolist()) == {5}
    model.put(0, 0, np.full(256, 6, np.float32))
    assert model.arrays()["big"][0, 0] == 6 and model.arrays()["big"].reshape(-1)[256] == 5


def test_chunks_of_arrays_are_those_of_the_flat_model() -> None:
    arrays = {**ARRAYS, "strided": np.asfortranarray(ARRAYS["big"]), "turned": ARRAYS["brain"][::-1]}
    model, copied = Model.of(arrays), Model(ModelSpec.of(arrays))
    named = NamedArrays(model.spec, arrays)
    copy_chunks(named, copied)
    assert same(copied.arrays(), arrays)
    for index in range(len(model.segments)):
        assert np.array_equal(named.chunk(index, 100, 200), model.chunk(index, 100, 200))


@pytest.mark.parametrize(("first", "stop"), [(-1, 5), (5, 4), (0, 257)])
def test_a_range_that_the_segment_has_not_got_is_refused(first: int, stop: int) -> None:
    arrays = {"w": np.ones(3, np.float32)}
    for source in (Model.of(arrays), NamedArrays(ModelSpec.of(arrays), arrays)):
        with pytest.raises(SpecError, match=f"a range of the 256 float32 elements, got {first} to {stop}"):
            source.chunk(0, first, stop)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros(3, ">f4"), np.zeros((3, 1), np.float32), np.zeros(6, np.float32)[::2]]
)
def test_other_values_than_a_chunks_are_refused(values: np.ndarray) -> None:
    with pytest.raises(SpecError, match="expected a flat, contiguous array of float32 for elements of float32, got"):
        Model.of({"w": np.ones(3, np.float32)}).put(0, 0, values)


SPEC = ModelSpec.of({"w": np.zeros(300, np.float32), "n": np.zeros(3, np.int64), "v": np.zeros(7, np.float32)})


def addresses(model: Model) -> list[int]:
    return [segment.ctypes.data for segment in model.segments]


def test_a_model_has_the_memory_of_one_that_is_gone() -> None:
    models = ModelPool()
    first = models(SPEC)
    taken = addresses(first)
    second = models(SPEC)
    assert not set(taken) & set(addresses(second))
    del first
    assert addresses(models(SPEC)) == taken


HOLDS: list[Callable[[Model], Buffer]] = [
    lambda model: model.arrays()["w"][5:9].reshape(2, 2).data,
    lambda model: model.read(SegmentRange(0, "float32", 3, 5))[0],
    lambda model: model.chunk(0, 2, 4).data,
    lambda model: model.segments[0].view(np.uint8)[:32].reshape(4, 8).data,
]


@pytest.mark.parametrize("hold", HOLDS)
def test_whoever_holds_an_array_or_a_piece_of_a_model_keeps_its_memory(hold: Callable[[Model], Buffer]) -> None:
    models = ModelPool()
    model = models(SPEC)
    model.segments[0][:] = 7
    held, taken = memoryview(hold(model)), addresses(model)[0]
    seen = held.tobytes()
    del model
    other = models(SPEC)
    assert addresses(other)[0] != taken
    other.segments[0][:] = 1
    assert held.tobytes() == seen
    del held
    assert addresses(models(SPEC))[0] == taken


def test_models_of_other_sizes_have_memory_of_their_own() -> None:
    models = ModelPool()
    models(SPEC)
    assert [segment.size for segment in models(ModelSpec.of({"w": np.zeros(3, np.int8)})).segments] == [256]
