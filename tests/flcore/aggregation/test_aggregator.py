"""The aggregator: the mean against the oracle, updates committed whole or not at all, and what is refused."""

import threading
import weakref
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flcore_transport.piece_format import piece_elements

from flcore import (
    Aggregator,
    Arrays,
    JobError,
    Model,
    ModelSpec,
    NonFinite,
    OutOfBounds,
    QuorumError,
    TensorMismatch,
    UpdateError,
    WeightError,
    aggregate,
)
from flcore.aggregation.staged_update import StagedUpdate
from flcore.model.wire_format import WireFormat
from tests.flcore.aggregation.rule_examples import ALL, CLIENTS, SUMS, WITHOUT_BASE
from tests.kernels.needed import MEDIANS
from tests.reference import DTYPES, bits_of, nearest, ulp, weighted_mean

SIZE = piece_elements("float32") + 1000


def update(seed: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((SIZE,)).astype(np.float32),
        "b": rng.standard_normal((3, 7)).astype(ml_dtypes.bfloat16),
        "n": np.array(rng.integers(0, 1000), np.int64),
        "none": np.zeros((4, 0), np.float32),
    }


def test_the_mean_is_the_mean() -> None:
    updates, weights = [update(seed) for seed in range(4)], [1.0, 10.0, 500.0, 3.0]
    found = aggregate(zip(updates, weights, strict=True))
    assert list(found) == ["w", "b", "n", "none"]
    for name in ("b", "n"):
        exact = weighted_mean([u[name] for u in updates], weights)
        for value, truth in zip(found[name].reshape(-1), exact, strict=True):
            assert float(value) in {float(v) for v in nearest(truth, str(found[name].dtype))}
    tail = [u["w"][-50:] for u in updates]
    for value, truth in zip(found["w"][-50:], weighted_mean(tail, weights), strict=True):
        assert abs(float(value) - truth) <= ulp(truth, "float32")


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        *((rule, dtype) for rule in SUMS for dtype in DTYPES),
        *((rule, dtype) for rule in WITHOUT_BASE if rule not in SUMS for dtype in MEDIANS),  # each has its kernels
    ],
)
def test_every_rule_keeps_what_all_agree_on(rule: str, dtype: str) -> None:
    same = {"w": np.arange(100).astype(DTYPES[dtype])}
    found = aggregate([(same, weight + 1) for weight in range(CLIENTS)], rule=rule)
    assert found["w"].dtype == DTYPES[dtype]
    assert np.array_equal(found["w"], same["w"])


@pytest.mark.parametrize("rule", ALL)
def test_no_rule_depends_on_the_order_of_arrival(rule: str) -> None:
    results, reference = [], Model.of(update(99))
    for order in ([0, 1, 2, 3, 4, 5, 6], [3, 1, 6, 0, 2, 5, 4]):
        aggregator = Aggregator(ModelSpec.of(update(0)), rule=rule, reference=reference)
        for seed in order:
            with aggregator.update(client=f"client-{seed}", weight=seed + 1) as staged:
                for name, array in update(seed).items():
                    staged.write(name, array)
        results.append(bits_of(aggregator.finish()))
    assert results[0] == results[1]


def test_the_unweighted_mean_ignores_weights() -> None:
    parts = [({"w": np.array([0.0])}, 1), ({"w": np.array([4.0])}, 1000)]
    assert aggregate(parts, rule="unweighted_mean")["w"].tolist() == [2.0]


def test_differences_are_added_to_their_base() -> None:
    base: Arrays = {"w": np.array([10.0, 20.0], np.float32), "n": np.array([5], np.int64)}
    deltas: list[tuple[Arrays, float]] = [
        ({"w": np.array([1.0, 0.0], np.float32), "n": np.array([-2], np.int64)}, 1),
        ({"w": np.array([3.0, 0.0], np.float32), "n": np.array([-4], np.int64)}, 1),
    ]
    found = aggregate(deltas, base=base)
    assert found["w"].tolist() == [12.0, 20.0] and found["n"].tolist() == [2]


def test_tensors_may_come_in_slices() -> None:
    spec = ModelSpec.of(update(0))
    whole, sliced = Aggregator(spec), Aggregator(spec)
    with whole.update(client="a", weight=1) as staged:
        for name, array in update(0).items():
            staged.write(name, array)
    with sliced.update(client="a", weight=1) as staged:
        for name, array in update(0).items():
            flat = array.reshape(-1)
            for start in range(0, flat.size, 100_001):
                staged.write(name, flat[start : start + 100_001], start)
    assert bits_of(whole.finish()) == bits_of(sliced.finish())


def test_an_update_that_fails_halfway_leaves_no_trace() -> None:
    aggregator = Aggregator(ModelSpec.of({"w": np.zeros(4)}))
    with aggregator.update(client="good", weight=1) as staged:
        staged.write("w", np.full(4, 2.0))
    with pytest.raises(RuntimeError), aggregator.update(client="bad", weight=1000) as staged:
        staged.write("w", np.full(4, 9.0))
        raise RuntimeError("power cut")
    with pytest.raises(TensorMismatch, match="only 2 of 4"), aggregator.update(client="b", weight=5) as staged:
        staged.write("w", np.full(2, 9.0))
    assert aggregator.finish().arrays()["w"].tolist() == [2.0] * 4


def test_a_client_has_one_update() -> None:
    aggregator = Aggregator(ModelSpec.of({"w": np.zeros(1)}))
    with aggregator.update(client="a", weight=1) as staged:
        staged.write("w", np.ones(1))
    with pytest.raises(UpdateError, match="client 'a': it has an update"):  # noqa: SIM117
        with aggregator.update(client="a", weight=1) as staged:
            staged.write("w", np.ones(1))


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, True])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(WeightError, match="client 'update 0': a weight is a finite number >= 0"):
        aggregate([({"w": np.ones(2)}, weight)])


def test_nothing_is_no_model() -> None:
    with pytest.raises(QuorumError, match="no update"):
        aggregate([])
    with pytest.raises(QuorumError, match="no update"):
        Aggregator(ModelSpec.of({"w": np.ones(2)})).finish()
    with pytest.raises(WeightError, match="weights of all 2 updates are zero"):
        aggregate([({"w": np.ones(2)}, 0.0), ({"w": np.ones(2)}, 0.0)])
    with pytest.raises(JobError, match="'krmm' does not exist; expected one of mean"):
        aggregate([({"w": np.ones(2)}, 1.0)], rule="krmm")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_value_that_is_not_finite_is_refused_by_name(bad: float, dtype: str) -> None:
    arrays = {"a": np.ones(300, DTYPES[dtype]), "b": np.ones(300, DTYPES[dtype])}
    arrays["b"][17] = bad
    sound = {name: np.ones(300, DTYPES[dtype]) for name in arrays}
    for updates, number in (([(arrays, 1.0), (sound, 1.0)], 0), ([(sound, 1.0), (arrays, 1.0)], 1)):
        with pytest.raises(NonFinite, match=f"client 'update {number}', tensor 'b': element 17 is {bad}"):
            aggregate(updates)


def test_values_out_of_bounds_are_refused_by_name() -> None:
    aggregator = Aggregator(ModelSpec.of({"w": np.zeros(3)}), max_abs=10.0)
    with pytest.raises(OutOfBounds, match="client 'a', tensor 'w': element 1 has magnitude 11, more than the 10"):  # noqa: SIM117
        with aggregator.update(client="a", weight=1) as staged:
            staged.write("w", np.array([1.0, -11.0, 2.0]))
    with pytest.raises(OutOfBounds, match="tensor 'n'"):
        aggregate([({"n": np.array([2**53 + 2], np.int64)}, 1.0), ({"n": np.array([1], np.int64)}, 1.0)])
    with pytest.raises(OutOfBounds, match="update 1"):
        aggregate([({"w": np.array([1e300])}, 1.0), ({"w": np.array([1e300])}, 1e10)])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.ones((4, 3), np.float32)}, "tensor 'b': it is missing"),
        ({"w": np.ones(3, np.float32), "b": np.ones(3, np.float32)}, r"tensor 'w': expected float32 of shape \(4, 3\)"),
        ({"w": np.ones((4, 3)), "b": np.ones(3, np.float32)}, "got float64"),
    ],
)
def test_updates_of_another_shape_are_refused(arrays: dict[str, npt.NDArray[Any]], message: str) -> None:
    first = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    with pytest.raises(TensorMismatch, match=message):
        aggregate([(first, 1.0), (arrays, 1.0)])


def test_writes_that_do_not_fit_are_refused() -> None:
    aggregator = Aggregator(ModelSpec.of({"w": np.zeros(4, np.float32)}))
    staged = aggregator.stage("a", 1.0)
    aggregator.allocate(staged).result()
    rows: list[tuple[str, npt.NDArray[Any], int, str]] = [
        ("v", np.ones(4, np.float32), 0, "no tensor of this name"),
        ("w", np.ones(4), 0, r"expected float32 of shape \(4,\), got float64 of shape \(4,\)"),
        ("w", np.ones(4, np.complex64), 0, "expected float32 of .*, got complex64"),
        ("w", np.ones((2, 2), np.float32), 0, r"expected float32 of shape \(4,\), got float32 of shape \(2, 2\)"),
        ("w", np.ones(5, np.float32), 0, "elements 0 to 5 came"),
        ("w", np.ones(2, np.float32), 2, "the next is 0"),
    ]
    for name, buffer, start, message in rows:
        with pytest.raises(TensorMismatch, match=message):
            staged.write(name, buffer, start)
    for thing in (None, [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(TensorMismatch, match="client 'a': tensor 'w': expected an array"):
            staged.write("w", thing)


def test_flat_elements_are_kept_not_copied_and_their_gaps_are_checked() -> None:
    spec = ModelSpec.of({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})
    flat = np.zeros(512, np.float32)
    flat[[0, 256]] = 5
    whole = WireFormat.uncompressed(spec).pieces[0]

    def begun() -> StagedUpdate:
        aggregator = Aggregator(spec)
        staged = aggregator.stage("x", 1.0)
        aggregator.allocate(staged).result()
        return staged

    staged = begun()
    with pytest.raises(TensorMismatch, match="expected piece 0"):
        staged.append(replace(whole, first=256, count=256), flat[256:].data)
    staged.append(whole, flat.data)
    with pytest.raises(TensorMismatch, match="expected piece 1"):
        staged.append(whole, flat.data)
    assert np.shares_memory(staged.read_range(whole), flat)
    for position, tensor in ((3, "a"), (255, "a"), (511, "b")):
        dirty = flat.copy()
        dirty[position] = 1
        with pytest.raises(TensorMismatch, match=f"tensor '{tensor}': the gap behind it is not zero"):
            begun().append(whole, dirty.data)


def test_a_difference_that_leaves_the_dtype_with_its_base_is_refused_by_name() -> None:
    base: Arrays = {"a": np.zeros(2, np.float16), "n": np.array([0, 100, 0], np.int8)}
    delta: Arrays = {"a": np.zeros(2, np.float16), "n": np.array([0, 100, 0], np.int8)}
    with pytest.raises(OutOfBounds, match="'update 1', tensor 'n': element 1 is 100: with the base, 100, it"):
        aggregate([({**delta, "n": np.zeros(3, np.int8)}, 1.0), (delta, 2.0)], base=base)


def test_many_threads_stage_at_once() -> None:
    spec = ModelSpec.of({"w": np.zeros(50_000, np.float32)})
    aggregator = Aggregator(spec)

    def stage(number: int) -> None:
        with aggregator.update(client=f"{number:03d}", weight=1) as staged:
            staged.write("w", np.full(50_000, number, np.float32))

    threads = [threading.Thread(target=stage, args=(number,)) for number in range(33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(aggregator.finish().arrays()["w"].tolist()) == {16.0}


def test_a_base_is_a_model_of_the_same_tensors() -> None:
    with pytest.raises(TensorMismatch, match="'w'"):
        aggregate([({"w": np.ones(3)}, 1.0)], base=Model.of({"w": np.ones(2)}).arrays())


def test_a_closed_aggregator_keeps_no_model_alive() -> None:
    for kind in ("base", "reference"):
        model = Model.of(update(0))
        aggregator, alive = Aggregator(model.spec, **{kind: model}), weakref.ref(model)  # type: ignore[arg-type]
        with aggregator.update(client="a", weight=1) as staged:
            staged.write_all({name: np.zeros_like(values) for name, values in update(0).items()})
        del model
        aggregator.finish()
        assert alive() is not None  # it may go on with another round
        aggregator.close()
        assert alive() is None
