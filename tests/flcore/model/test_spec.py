"""The flat parameter space: where each tensor lies, and what is no model."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from flcore_kernels import STORAGE
from flcore_layout import DTYPES
from hypothesis import given
from hypothesis import strategies as st

from flcore import Arrays, ModelSpec, SpecError, TensorMismatch, TensorSpec, UpdateError
from flcore.model.dtypes import DTYPES as NUMPY_DTYPES

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
TENSORS = st.lists(st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), SHAPES), min_size=1, max_size=12).map(
    lambda rows: tuple(TensorSpec(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(rows))
)


@given(TENSORS)
def test_tensors_lie_in_order_aligned_and_apart(tensors: tuple[TensorSpec, ...]) -> None:
    spec = ModelSpec(tensors)
    assert sorted(span.tensor.name for seg in spec.segments for span in seg.spans) == sorted(t.name for t in tensors)
    for segment in spec.segments:
        end = 0
        for span in segment.spans:
            assert span.tensor.dtype == segment.dtype
            assert span.start % 256 == 0
            assert end <= span.start < end + 256 or span.start == end
            end = span.stop
        assert segment.elements % 256 == 0
        assert end <= segment.elements < end + 256


@given(TENSORS, st.integers(0, 5000), st.integers(1, 2000))
def test_overlapping_finds_the_tensors_of_a_range(tensors: tuple[TensorSpec, ...], first: int, count: int) -> None:
    for segment in ModelSpec(tensors).segments:
        found = list(segment.overlapping(first, first + count))
        assert found == [span for span in segment.spans if max(span.start, first) < min(span.stop, first + count)]


@given(TENSORS, st.integers(0, 5000), st.integers(1, 5000))
def test_the_gaps_of_a_range_are_what_no_tensor_covers(tensors: tuple[TensorSpec, ...], first: int, count: int) -> None:
    for segment in ModelSpec(tensors).segments:
        stop = min(first + count, segment.elements)
        if first >= stop:
            continue
        covered = {element for span in segment.spans for element in range(span.start, span.stop)}
        bounds = segment.gaps(first, stop).reshape(-1, 2).tolist()
        found = [element for begin, end in bounds for element in range(begin, end)]
        assert found == [element for element in range(first, stop) if element not in covered]
        assert all(begin < end for begin, end in bounds)


def test_an_element_is_found_in_its_tensor() -> None:
    spec = ModelSpec((TensorSpec("a", "int8", (300,)), TensorSpec("b", "int8", (4, 4))))
    assert spec.segments[0].locate(299) == (spec.tensors[0], 299)
    assert spec.segments[0].locate(512 + 5) == (spec.tensors[1], 5)


def test_the_fingerprint_depends_on_names_dtypes_shapes_and_order_alone() -> None:
    a, b = TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (6,))
    spec = ModelSpec((a, b))
    assert spec.fingerprint == ModelSpec((a, b)).fingerprint
    changed = [(b, a), (a,), (a, TensorSpec("b", "float16", (6,))), (a, TensorSpec("b", "float32", (6, 1)))]
    assert len({spec.fingerprint, *(ModelSpec(tensors).fingerprint for tensors in changed)}) == 5


def test_the_three_tables_of_dtypes_have_the_same_rows() -> None:
    assert list(NUMPY_DTYPES) == [name for name, row in DTYPES.items() if not row.block]  # quantized: on the wire alone
    assert set(DTYPES) == set(STORAGE)
    for name, row in DTYPES.items():
        assert (row.itemsize, row.block) == (STORAGE[name].dtype.itemsize, STORAGE[name].block)
    for name, dtype in NUMPY_DTYPES.items():
        assert DTYPES[name].itemsize == dtype.itemsize


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "at least one tensor"),
        ({"w": [1.0, 2.0]}, "'w': expected an array of NumPy, PyTorch, JAX or CuPy, .*, got list"),
        ({"w": np.zeros(2, np.complex64)}, "complex64 is not supported"),
        ({"w": np.zeros(2, "M8[s]")}, r"datetime64\[s\] is not supported"),
        ({"w": np.zeros(2, ">f4")}, ">f4 is not supported"),
        ({"": np.zeros(2)}, "1 to 1024 characters"),
        ({"w" * 1025: np.zeros(2)}, "1 to 1024 characters"),
    ],
)
def test_what_is_no_model_is_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.of(arrays)


def test_bad_tensors_are_refused() -> None:
    with pytest.raises(SpecError, match="whole numbers, 0 to"):
        TensorSpec("w", "float32", (-1,))
    with pytest.raises(SpecError, match="more than"):
        TensorSpec("w", "float32", (2**40, 2**40))
    with pytest.raises(SpecError, match="'w' appears twice"):
        ModelSpec((TensorSpec("w", "float32", ()), TensorSpec("w", "float32", ())))


def test_require_names_the_first_difference() -> None:
    spec = ModelSpec.of({"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, ml_dtypes.bfloat16)})
    spec.require_match(ModelSpec((spec.tensors[1], spec.tensors[0])))
    rows: list[tuple[Arrays, str]] = [
        ({"w": np.zeros((4, 3), np.float32)}, "client 'x', tensor 'b': it is missing"),
        ({"w": np.zeros(3, np.float32), "b": np.zeros(3, ml_dtypes.bfloat16)}, r"expected float32 of shape \(4, 3\)"),
        ({"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.uint16)}, "expected bfloat16 .* got uint16"),
    ]
    for other, message in rows:
        with pytest.raises(TensorMismatch, match=message):
            spec.require_match(ModelSpec.of(other), client="x")
    extra = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, ml_dtypes.bfloat16), "odd": np.zeros(1)}
    with pytest.raises(TensorMismatch, match="tensor 'odd': the model has no tensor"):
        spec.require_match(ModelSpec.of(extra))


def test_the_extents_of_an_empty_tensor_are_bounded_too() -> None:
    with pytest.raises(SpecError, match="its shape has more than"):
        TensorSpec("w", "float32", (2**40, 0, 2**40))
    assert np.zeros(TensorSpec("w", "float32", (2**40, 0)).shape).size == 0


def test_an_error_names_a_client_or_a_checkpoint_and_survives_a_process_border() -> None:
    error = TensorMismatch("it is missing", client="x", tensor="w")
    assert str(error) == "client 'x', tensor 'w': it is missing"
    error.sender = "checkpoint"
    assert str(pickle.loads(pickle.dumps(error))) == "checkpoint 'x', tensor 'w': it is missing"
    assert str(UpdateError("no pair", client="x", sender="update")) == "update 'x': no pair"
    assert str(UpdateError("no pair")) == "no pair"
