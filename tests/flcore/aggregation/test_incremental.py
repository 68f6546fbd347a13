"""The running combination: its groups, its twin of memory, and no trace of refused updates."""

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels.cpu.backend import CpuBackend

from flcore import (
    AggregationError,
    Columns,
    ModelSpec,
    NonFinite,
    OutOfBounds,
    QuorumError,
    TensorMismatch,
    UpdateError,
    WeightError,
    aggregate,
)
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.aggregation.output_template import OutputTemplate

Arrays = dict[str, npt.NDArray[Any]]


def models(count: int = 11) -> list[tuple[Arrays, float, str]]:
    rng = np.random.default_rng(count)
    return [
        (
            {
                "w": (rng.standard_normal((70, 9)) * 10.0 ** rng.integers(-9, 9, (70, 9))).astype(np.float32),
                "h": rng.standard_normal(1000).astype(ml_dtypes.bfloat16),
                "v": rng.standard_normal(3).astype(np.float32),
                "n": np.array([index, 7]),
            },
            float(rng.integers(1, 1000)) / 7,
            f"site-{index}",
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("double_buffer", [False, True])
@pytest.mark.parametrize("group", [1, 3, 4, 11, 12])
def test_exact_results_are_those_of_aggregate_to_the_bit(group: int, double_buffer: bool) -> None:
    given = models()
    expected = aggregate([(arrays, weight) for arrays, weight, _ in given])
    running = IncrementalAggregator(group=group, double_buffer=double_buffer)
    for order in (given, given[::-1]):
        for update in order:
            running.add(*update)
        found = running.finish()
        assert {name: values.tobytes() for name, values in found.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }


@pytest.mark.parametrize("double_buffer", [False, True])
@pytest.mark.parametrize("group", [1, 4, 12])
def test_float32_results_are_right_to_rounding_and_go_where_they_are_wanted(group: int, double_buffer: bool) -> None:
    given = models()
    expected = aggregate([(arrays, weight) for arrays, weight, _ in given])
    running = IncrementalAggregator(accumulate="float32", group=group, double_buffer=double_buffer)
    for _ in range(2):
        for update in given:
            running.add(*update)
        out = {name: np.empty_like(values) for name, values in expected.items()}
        assert running.finish(out) == out
        for name, values in expected.items():
            scale = max(float(np.abs(arrays[name]).max()) for arrays, _, _ in given)
            assert np.allclose(
                out[name].astype(float), values.astype(float), rtol=1e-2 if name == "h" else 1e-5, atol=1e-6 * scale
            )


def test_weights_of_zero_count_for_nothing() -> None:
    for double_buffer in (False, True):
        running = IncrementalAggregator(accumulate="float32", double_buffer=double_buffer)
        running.add({"w": np.ones(3, np.float32)}, 0, "a")
        with pytest.raises(NonFinite, match="client 'b'"):
            running.add({"w": np.full(3, np.nan, np.float32)}, 0, "b")
        with pytest.raises(WeightError, match="the weights of all 1 updates are zero"):
            running.finish()
        running.clear()
        running.add({"w": np.ones(3, np.float32)}, 0, "a")
        running.add({"w": np.full(3, 5.0, np.float32)}, 2, "b")
        assert running.finish()["w"].tolist() == [5.0] * 3


@pytest.mark.parametrize("double_buffer", [False, True])
@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_refused_update_leaves_no_trace(bad: float, accumulate: str, double_buffer: bool) -> None:
    given = models()
    for name in ("w", "h", "v"):
        unsound = {key: values.copy() for key, values in given[0][0].items()}
        unsound[name].reshape(-1)[2] = bad
        for group in (1, 2, 12):
            told: list[UpdateError] = []
            clean = IncrementalAggregator(accumulate=accumulate, group=group, double_buffer=double_buffer)
            running = IncrementalAggregator(accumulate=accumulate, group=group, double_buffer=double_buffer)
            for index, update in enumerate(given):
                clean.add(*update)
                if index == 5:
                    try:
                        running.add(unsound, 3.0, "bad")
                    except NonFinite as error:
                        told.append(error)
                running.add(*update)
            found, expected = running.finish(), clean.finish()
            told += running.pop_rejected()
            assert [(error.client, error.tensor) for error in told] == [("bad", name)]
            for key, values in expected.items():
                close = found[key].astype(float), values.astype(float)
                if group in (1, 12) or accumulate == "exact":
                    assert np.array_equal(*close), (group, key)
                else:
                    assert np.allclose(*close, rtol=1e-2)


def test_one_of_two_who_are_refused_at_once_is_told_by_add() -> None:
    running = IncrementalAggregator(group=2, spec=ModelSpec.of({"w": np.ones(1, np.float32), "v": np.ones(1)}))
    running.add({"w": np.ones(1, np.float32), "v": np.array([np.nan])}, 1, "first")
    with pytest.raises(NonFinite, match="client 'second', tensor 'w'"):
        running.add({"w": np.full(1, np.nan, np.float32), "v": np.ones(1)}, 1, "second")
    assert [error.client for error in running.pop_rejected()] == ["first"]


def test_bounds_are_kept_in_any_group() -> None:
    for group in (1, 2, 9):
        for double_buffer in (False, True):
            told: list[UpdateError] = []
            running = IncrementalAggregator(accumulate="float32", group=group, max_abs=5, double_buffer=double_buffer)
            for client, value in (("a", 1.0), ("bad", 6.0), ("c", 3.0)):
                try:
                    running.add({"w": np.full(3, value, np.float32)}, 1, client)
                except OutOfBounds as error:
                    told.append(error)
            assert running.finish()["w"].tolist() == [2.0] * 3
            assert [error.client for error in told + running.pop_rejected()] == ["bad"]
            assert not running.pop_rejected()


def test_what_the_model_is_comes_from_the_spec_or_the_first_update_and_stays() -> None:
    running = IncrementalAggregator(spec=ModelSpec.of({"w": np.ones(3)}))
    with pytest.raises(TensorMismatch, match="client 'a', tensor 'w': it is missing"):
        running.add({"x": np.ones(3)}, 1, "a")
    with pytest.raises(QuorumError):
        running.finish()
    running = IncrementalAggregator()
    with pytest.raises(TensorMismatch, match="client 'a': tensor 'w': expected an array"):
        running.add({"w": "nothing"}, 1, "a")
    for bad in ({"odd": np.array([np.nan])}, {"odd": np.ones(1), "w": np.array([np.inf])}):
        with pytest.raises(NonFinite):
            running.add(bad, 1, "bad")
    running.add({"x": np.ones(3)}, 1, "a")
    running.clear()
    with pytest.raises(QuorumError):
        running.finish()
    running.add({"w": np.ones(3)}, 1, "a")
    running.finish()
    with pytest.raises(TensorMismatch, match="client 'b', tensor 'w': it is missing"):
        running.add({"x": np.ones(3)}, 1, "b")


@pytest.mark.parametrize("group", [1, 2, 9])
def test_a_refused_update_does_not_shape_the_result(group: int) -> None:
    def model(value: float, *, is_tied: bool = True) -> dict[str, Any]:
        one = np.full(3, value)
        return {"body": {"in": one, "out": one if is_tied else one.copy()}}

    running = IncrementalAggregator(group=group)
    for client, update in (
        ("flat", {"body.in": np.full(3, np.nan), "body.out": np.ones(3)}),
        ("a", model(1.0)),
        ("untied", model(np.nan, is_tied=False)),
        ("b", model(3.0)),
    ):
        try:
            running.add(update, 1, client)
        except NonFinite:
            assert client in ("flat", "untied")
    found = running.finish()["body"]
    assert found["in"] is found["out"] and found["in"].tolist() == [2.0] * 3


def test_a_round_of_nobody_who_can_be_counted_has_no_result() -> None:
    for group in (1, 2, 9):
        told: list[UpdateError] = []
        running = IncrementalAggregator(group=group)
        for client in "abc":
            try:
                running.add({"w": np.array([np.nan])}, 1, client)
            except NonFinite as error:
                told.append(error)
        with pytest.raises(QuorumError):
            running.finish()
        assert sorted(error.client for error in told + running.pop_rejected()) == ["a", "b", "c"]


@pytest.mark.parametrize("group", [1, 3])
def test_no_more_than_a_group_is_alive(group: int) -> None:
    alive: list[weakref.ref[Any]] = []
    running = IncrementalAggregator(group=group, double_buffer=True, accumulate="float32")
    gc.disable()
    try:
        for index in range(10):
            values = np.full(1000, index, np.float32)
            alive.append(weakref.ref(values))
            running.add({"w": values}, 1, f"site-{index}")
            del values
            assert sum(each() is not None for each in alive) <= group - 1
    finally:
        gc.enable()
    assert running.finish()["w"].tolist() == [4.5] * 1000


def one(value: float, dtype: Any = np.float32) -> Arrays:
    return {"w": np.full(2, value, dtype)}


@pytest.mark.parametrize("double_buffer", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("accumulate", "dtype", "huge"), [("float32", np.float32, 3.4e38), ("float64", np.float64, 1.7e308)]
)
def test_a_sum_that_overflows_costs_its_sender_its_place(
    accumulate: str, dtype: Any, huge: float, group: int, double_buffer: bool
) -> None:
    running = IncrementalAggregator(accumulate=accumulate, group=group, double_buffer=double_buffer)
    told: list[UpdateError] = []
    for client, value, weight in (("a", 1.0, 1), ("evil", huge, 5), ("worse", huge, 5), ("b", 3.0, 1)):
        try:
            running.add(one(value, dtype), weight, client)
        except UpdateError as error:
            told.append(error)
    assert running.finish()["w"].tolist() == [2.0, 2.0]
    assert {error.client for error in told + running.pop_rejected()} == {"evil", "worse"}


def test_weights_that_a_total_would_not_hold_together_are_refused_by_name() -> None:
    for accumulate, weight in (("float32", 1e-290), ("float32", 9e299), ("float64", 1e200), ("exact", 1e20)):
        running = IncrementalAggregator(accumulate=accumulate)
        with pytest.raises(WeightError, match=r"client 'evil': .*(sums take weights|exact sums take)"):
            running.add(one(1.0), weight, "evil")
        running.add(one(1.0), 100, "a")
        running.add(one(3.0), 100, "b")
        assert running.finish()["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("verb", ["max_abs", "fold"])
def test_an_error_in_the_middle_is_no_half_update(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running = IncrementalAggregator()
    update = {"w": np.ones(2, np.float32), "v": np.ones(2)}
    running.add(update, 1, "a")
    real, calls = getattr(CpuBackend, verb), 0

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(CpuBackend, verb, fails)
    with pytest.raises(MemoryError):
        running.add({"w": np.full(2, 100, np.float32), "v": np.full(2, 100.0)}, 1, "y")
    if verb == "max_abs":
        running.add(update, 1, "b")
        assert {name: values.tolist() for name, values in running.finish().items()} == {"w": [1, 1], "v": [1, 1]}
    else:
        for attempt in (lambda: running.add(update, 1, "b"), running.finish):
            with pytest.raises(AggregationError, match="left this round half folded"):
                attempt()
        running.clear()
        running.add(update, 1, "b")
        assert running.finish()["v"].tolist() == [1.0, 1.0]


def test_a_refusal_is_of_its_round_only_and_keeps_no_arrays_alive() -> None:
    running = IncrementalAggregator(group=3, spec=ModelSpec.of(one(1.0)))
    alive = []
    for client in ("n1", "n2", "n3"):
        bad = one(np.nan)
        alive.append(weakref.ref(bad["w"]))
        try:
            running.add(bad, 1, client)
        except NonFinite:
            assert client == "n3"
        del bad
    gc.collect()
    assert not any(each() is not None for each in alive) and len(running._rejected) == 2
    running.clear()
    running.group = 2
    running.add(one(1.0), 1, "n2")
    running.add(one(3.0), 1, "n1")
    assert running.finish()["w"].tolist() == [2.0, 2.0] and not running.pop_rejected()


def test_a_client_that_comes_twice_is_refused_for_what_is_its_own() -> None:
    for group in (1, 3):
        running = IncrementalAggregator(group=group, spec=ModelSpec.of(one(1.0)))
        for value in (1.0, np.nan, 3.0):
            try:
                running.add(one(value), 1, "?")
            except NonFinite:
                assert np.isnan(value)
        assert running.finish()["w"].tolist() == [2.0, 2.0]


def test_an_interrupt_loses_nobody_s_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    running = IncrementalAggregator(group=2, spec=ModelSpec.of(one(1.0)))
    for client, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        running.add(one(value), 1, client)
    for attempt in (running.finish, lambda: running.add(one(100.0), 1, "d"), lambda: running.add(one(4.0), 1, "c")):
        with monkeypatch.context() as patch:
            patch.setattr(CpuBackend, "max_abs", interrupted)
            with pytest.raises(KeyboardInterrupt):
                attempt()
    assert running.finish()["w"].tolist() == [2.0, 2.0]


def test_an_interrupt_right_after_a_fold_counts_nobody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    running = IncrementalAggregator(group=2, spec=ModelSpec.of(one(1.0)))
    running.add(one(1.0), 1, "a")
    with monkeypatch.context() as patch:
        patch.setattr(OutputTemplate, "add_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            running.add(one(3.0), 1, "b")
    with pytest.raises(AggregationError, match="left this round half folded"):
        running.finish()
    running.clear()
    running.add(one(5.0), 1, "a")
    assert running.finish()["w"].tolist() == [5.0, 5.0]


def test_a_round_without_a_result_leaves_nothing_for_the_next_one() -> None:
    def failing(columns: Any, weights: Any) -> Any:
        raise ValueError(len(columns))

    running = IncrementalAggregator(rule=Columns("failing", failing), spec=ModelSpec.of(one(1.0)))
    for count in (1, 2):
        for number in range(count):
            running.add(one(1.0), 1, f"{number}")
        with pytest.raises(AggregationError, match=f"rule 'failing': combine raised ValueError: {count}"):
            running.finish()
