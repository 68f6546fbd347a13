"""`flcore.aggregate`: what may go in, where the result goes, how much is alive, and what does not change a bit."""

import array
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from flcore import (
    JobError,
    NonFinite,
    OutOfBounds,
    SpecError,
    TensorMismatch,
    UpdateError,
    WeightError,
    aggregate,
)
from tests.reference import DTYPES

Update = tuple[dict[str, npt.NDArray[Any]], float]


def updates(count: int = 9) -> list[Update]:
    rng = np.random.default_rng(count)
    return [
        (
            {
                "w": (rng.standard_normal((70, 9)) * 10.0 ** rng.integers(-30, 30, (70, 9))).astype(np.float32),
                "b": rng.standard_normal(1000).astype(ml_dtypes.bfloat16),
                "d": rng.standard_normal(65) * 1e200,
                "steps": np.array(rng.integers(-1000, 1000), np.int64),
                "none": np.zeros((0, 3), np.float16),
            },
            float(rng.integers(1, 10_000)) / 7,
        )
        for _ in range(count)
    ]


def assert_same_bits(found: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert (found[name].dtype, found[name].shape) == (expected[name].dtype, expected[name].shape)
        assert found[name].tobytes() == expected[name].tobytes(), name


def test_neither_order_nor_groups_change_a_bit_of_an_exact_result() -> None:
    given = updates()
    expected = aggregate(given)
    assert_same_bits(aggregate(given[::-1]), expected)
    assert_same_bits(aggregate(iter(given)), expected)
    for budget in (1, 10**9):
        assert_same_bits(aggregate(iter(given[3:] + given[:3]), budget_bytes=budget), expected)


@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_a_sequence_and_an_iterator_agree_within_rounding(accumulate: str) -> None:
    given = [({"w": np.linspace(-1, 1, 777, dtype=np.float32) * (i + 1)}, i + 1) for i in range(6)]
    expected = np.average([u["w"].astype(np.float64) for u, _ in given], axis=0, weights=[w for _, w in given])
    for found in (aggregate(given, accumulate=accumulate), aggregate(iter(given), accumulate=accumulate)):
        assert np.allclose(found["w"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("budget", "group"), [(None, 4), (1, 1), (2 * 4096, 2), (10**9, 8)])
def test_no_more_than_a_group_and_one_update_are_alive(budget: int | None, group: int) -> None:
    made: list[weakref.ref[npt.NDArray[Any]]] = []
    most = 0

    def stream() -> Iterator[Update]:
        nonlocal most
        for index in range(20):
            values = np.full(1024, index, np.float32)
            made.append(weakref.ref(values))
            most = max(most, sum(each() is not None for each in made))
            yield {"w": values}, 1.0
            del values

    gc.disable()  # reference counts alone must do
    try:
        found = aggregate(stream(), budget_bytes=budget)
    finally:
        gc.enable()
    assert most <= group + 1
    assert set(found["w"].tolist()) == {9.5}


def test_the_result_goes_into_the_arrays_given() -> None:
    given = updates()
    expected = aggregate(given)
    for source in (given, iter(given)):
        out = {name: np.empty_like(values) for name, values in expected.items()}
        kept = dict(out)
        found = aggregate(source, out=out)
        assert all(found[name] is kept[name] for name in kept)
        assert_same_bits(found, expected)


def test_arrays_to_write_to_must_fit() -> None:
    given = [({"w": np.ones((2, 3), np.float32)}, 1.0)]
    with pytest.raises(TensorMismatch, match=r"out: .*expected float32 of shape \(2, 3\), got float64"):
        aggregate(given, out={"w": np.ones((2, 3))})
    with pytest.raises(TensorMismatch, match=r"out: .*it is missing"):
        aggregate(given, out={})
    for wrong in (np.ones((3, 2), np.float32).T, np.broadcast_to(np.float32(1), (2, 3))):
        with pytest.raises(TensorMismatch, match="tensor 'w': out: expected a contiguous array"):
            aggregate(given, out={"w": wrong})


def test_anything_with_a_buffer_is_read() -> None:
    first = {"w": array.array("f", [1.0, 2.0]), "n": memoryview(np.array([[4]], np.int32).data), "s": np.float64(3.0)}
    second = {"w": np.array([3.0, 4.0], np.float32), "n": np.array([[8]], np.int32), "s": np.array(5.0)}
    found = aggregate([(first, 1), (second, 1)])
    assert found["w"].tolist() == [2.0, 3.0] and found["n"].tolist() == [[6]] and found["s"].tolist() == 4.0
    with pytest.raises(SpecError, match="tensor 'w': expected an array of NumPy, PyTorch, JAX or CuPy"):
        aggregate([({"w": [1.0, 2.0]}, 1)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_that_are_not_contiguous_are_read_right(dtype: str) -> None:
    values = np.arange(24).reshape(4, 6).astype(DTYPES[dtype])
    views = [values.T, values[:, ::2].T, values[::-1].T[:, :]]
    for view in views:
        found = aggregate([({"w": view}, 1.0), ({"w": view.copy()}, 3.0)])
        assert np.array_equal(found["w"], view)


def test_read_only_misaligned_and_tied_arrays_are_read() -> None:
    raw = b"\0" + np.arange(300, dtype=np.float32).tobytes()
    odd = np.frombuffer(raw, np.float32, offset=1)
    assert not odd.flags.aligned and not odd.flags.writeable
    found = aggregate([({"a": odd, "tied": odd}, 1.0), ({"a": odd, "tied": odd}, 2.0)])
    assert np.array_equal(found["a"], odd) and np.array_equal(found["tied"], odd)


def test_a_bad_value_is_named_wherever_it_is() -> None:
    for form in (list, iter):
        for accumulate in ("exact", "float64", "float32"):
            given = [({"w": u["w"], "b": u["b"]}, weight) for u, weight in updates(7)]
            given[5][0]["b"][999] = np.nan
            with pytest.raises(NonFinite, match="client 'update 5', tensor 'b': element 999 is nan"):
                aggregate(form(given), accumulate=accumulate)


def test_integers_beyond_what_is_summed_exactly_are_refused_by_name() -> None:
    for value in (2**53 + 1, -(2**53) - 1, 2**62):
        given: list[Update] = [({"n": np.array([0, 2**53])}, 1.0), ({"n": np.array([0, value])}, 1.0)]
        with pytest.raises(OutOfBounds, match="client 'update 1', tensor 'n': element 1"):
            aggregate(given)
    assert aggregate([({"n": np.array([2**53])}, 3.0)])["n"].tolist() == [2**53]


def test_weights_outside_the_exact_range_are_refused_and_taken_by_float64() -> None:
    given: list[Update] = [({"w": np.ones(3)}, 1e-30), ({"w": np.full(3, 3.0)}, 1e-30)]
    with pytest.raises(WeightError, match="client 'update 0': exact sums take weights that are 0 or between"):
        aggregate(given)
    with pytest.raises(WeightError, match="client 'update 0': float32 sums take weights that are 0 or between"):
        aggregate(given, accumulate="float32")
    assert aggregate(given, accumulate="float64")["w"].tolist() == [2.0] * 3


def test_what_does_not_exist_is_told() -> None:
    with pytest.raises(JobError, match="accumulate 'double' does not exist; expected one of exact, float64, float32"):
        aggregate(updates(1), accumulate="double")


def test_a_result_beyond_its_dtype_is_told() -> None:
    given: list[Update] = [({"h": np.full(3, 60000, np.float16)}, 1.0)]
    with pytest.raises(OutOfBounds, match=r"'update 0', tensor 'h': element 0 is 60000\.0: with the base, 60000"):
        aggregate(given, base={"h": np.full(3, 60000, np.float16)})


def test_ten_thousand_float16_ones_average_to_one_and_many_clients_do_not_overflow() -> None:
    one = {"h": np.ones(5, np.float16)}
    assert aggregate([(one, 1e5)] * 10_000)["h"].tolist() == [1.0] * 5
    assert aggregate(((one, 1e5) for _ in range(1000)), accumulate="float32")["h"].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("updates", "kind", "words"),
    [
        ([({"b": None}, 1)], SpecError, "update 0: tensor 'b': expected an array of NumPy"),
        ([({"b": np.zeros(2)}, 1), ({"b": None}, 1)], SpecError, "update 1: tensor 'b'"),
        (
            [({"mask": np.zeros(2, complex)}, 1)],
            SpecError,
            "update 0: tensor 'mask': dtype complex128 is not supported",
        ),
        ([(100, {"b": np.zeros(2)})], UpdateError, "a pair of named arrays"),
        ([{"b": np.zeros(2)}], UpdateError, "a pair of named arrays"),
        ([({"b": np.zeros(2)}, 10**400)], WeightError, "a weight is a finite number >= 0, not 1000"),
    ],
)
def test_what_is_no_update_is_told_by_its_number(updates: Any, kind: type[Exception], words: str) -> None:
    for given in (updates, iter(updates)):
        with pytest.raises(kind, match=words):
            aggregate(given)


def test_a_weight_may_be_a_narrow_numpy_number() -> None:
    update = {"b": np.full(2, 3.0, np.float32)}
    for weight in (np.float16(2), np.float32(2), np.int8(2), np.uint64(2)):
        assert aggregate([(update, weight)])["b"].tolist() == [3.0, 3.0]  # type: ignore[list-item]
