"""What is no quantity is not averaged: masks of infinities, sentinels, unsigned bytes; and memory that is shared."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flcore
from flcore import Aggregator, Model, ModelSpec, NonFinite, OutOfBounds, SpecError, TensorMismatch, aggregate
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.model.dtypes import DTYPES

Arrays = dict[str, npt.NDArray[Any]]
NAN = np.array([0x7FC0_1234], np.uint32).view(np.float32)  # whose payload must come through
SIZE = (1 << 19) + 1000  # more than one range


def model(value: float, **others: Any) -> Arrays:
    mask = np.zeros(SIZE, np.float32)
    mask[::1000] = -np.inf
    mask[7] = NAN[0]
    half = np.array([value, -np.inf], np.float16)
    sentinels = np.array([2**63 - 1, int(value), -(2**53) - 1, -(2**63)])
    codes = np.arange(300, dtype=np.uint8)
    found: Arrays = {"w": np.full(300, value, np.float32), "mask": mask, "h": half, "n": sentinels, "codes": codes}
    return found | others


def sent() -> list[tuple[Arrays, float]]:
    return [(model(value), value) for value in (1.0, 2.0, 3.0, 6.0)]


WANTED = model(50 / 12, n=np.array([2**63 - 1, 4, -(2**53) - 1, -(2**63)]))


def assert_wanted(found: Any) -> None:
    for name, values in WANTED.items():
        assert found[name].dtype == values.dtype and found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_what_all_have_alike_comes_through_bit_for_bit(accumulate: str, tmp_path: Path) -> None:
    out = {name: np.empty_like(values) for name, values in WANTED.items()}
    for given in (list, iter):
        assert_wanted(aggregate(given(sent()), accumulate=accumulate))
        aggregate(given(sent()), accumulate=accumulate, out=out)
        assert_wanted(out)
    mine = sent()
    aggregate(mine, accumulate=accumulate, out=mine[1][0])  # in place
    assert_wanted(mine[1][0])
    for group in (1, 3, None):
        running = IncrementalAggregator(accumulate=accumulate, group=group)
        for _ in range(2):
            running.begin_round(model(0.0))
            for number, (arrays, weight) in enumerate(sent()):
                running.add(arrays, weight, f"{number}")
            assert_wanted(running.finish())
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path, (arrays, _) in zip(paths, sent(), strict=True):
        flcore.save(arrays, path)
    stored = aggregate_checkpoints(paths, tmp_path / "out.safetensors", weights=[1, 2, 3, 6], accumulate=accumulate)
    assert_wanted(stored.arrays())


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_it_comes_through_an_aggregator_that_knows_what_was_sent(plan: str, memory_bytes: int | None) -> None:
    storage = Storage(plan, Staging(memory_bytes), read_chunks=2)
    aggregator = Aggregator(ModelSpec.of(WANTED), reference=Model.of(model(0.0)), storage=storage)
    for number, (arrays, weight) in enumerate(sent()):
        with aggregator.update(client=f"{number}", weight=weight) as update:
            update.write_all(arrays)
    for name, place, value, words in (
        ("mask", 3, np.nan, "element 3 is nan, where the model that was sent has 0.0$"),
        (
            "mask",
            1000,
            1.0,
            "element 1000 is 1.0, where the model that was sent has -inf: NaN, infinities and .* are not averaged",
        ),
        ("n", 0, 5, "element 0 is 5, where the model that was sent has 9223372036854775807"),
        (
            "codes",
            9,
            0,
            r"element 9 is 0, where the model that was sent has 9: bytes may be packed codes, .*average_bytes=True",
        ),
    ):
        odd = model(1.0)
        odd[name][place] = value
        with pytest.raises((NonFinite, OutOfBounds), match=f"client 'odd', tensor '{name}': {words}"):  # noqa: SIM117
            with aggregator.update(client="odd", weight=1.0) as update:
                update.write_all(odd)
    assert_wanted(aggregator.finish().arrays())


def test_with_a_base_it_is_the_base_s_and_differences_there_are_zero() -> None:
    base = model(1.0)
    zeros = {name: np.zeros_like(values) for name, values in base.items()}
    deltas = [(zeros | {"w": np.full(300, value, np.float32)}, 1.0) for value in (1.0, 3.0)]
    wanted = base | {"w": np.full(300, 3.0, np.float32)}
    for given in (list, iter):
        found = aggregate(given(deltas), base=base)
        assert all(found[name].tobytes() == values.tobytes() for name, values in wanted.items())
    odd = zeros | {"mask": np.where(np.arange(SIZE) == 1000, np.float32(1), np.float32(0))}
    with pytest.raises(OutOfBounds, match="client 'update 2', tensor 'mask': element 1000 is 1"):
        aggregate([*deltas, (odd, 1.0)], base=base)


def test_bytes_that_differ_are_refused_unless_they_are_said_to_be_numbers(tmp_path: Path) -> None:
    given = [({"codes": np.full(300, value, np.uint8)}, 1.0) for value in (1, 1, 3, 3)]
    words = "client 'update 2', tensor 'codes': element 0 differs from that of 'update 0': unsigned bytes are not"
    with pytest.raises(OutOfBounds, match=words):
        aggregate(given)
    with pytest.raises(OutOfBounds, match="client 'update 2', tensor 'codes': element 0 is 3, where the model"):
        aggregate(iter(given))
    running = IncrementalAggregator()
    running.add(given[0][0], 1, "a")
    with pytest.raises(OutOfBounds, match="client 'b', tensor 'codes'"):
        running.add(given[2][0], 1, "b")
    assert running.finish()["codes"][0] == 1
    with pytest.raises(SpecError, match="the model has unsigned bytes, which may be packed codes: give reference="):
        Aggregator(ModelSpec.of(given[0][0]))
    for form in (list, iter):
        assert set(aggregate(form(given), average_bytes=True)["codes"].tolist()) == {2}
    for number, (arrays, _) in enumerate(given):
        flcore.save(arrays, tmp_path / f"{number}.safetensors")
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    with pytest.raises(OutOfBounds, match=r"checkpoint '.*2\.safetensors', tensor 'codes'"):
        aggregate_checkpoints(paths, tmp_path / "out.safetensors")
    stored = aggregate_checkpoints(paths, tmp_path / "out.safetensors", average_bytes=True)
    assert set(stored.arrays()["codes"].tolist()) == {2}


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("bool", "uint8")])
def test_one_who_has_what_others_have_not_is_the_one_who_is_named(dtype: str) -> None:
    odd = 2**60 if np.dtype(DTYPES[dtype]).kind in "iu" else np.inf
    if np.dtype(DTYPES[dtype]).kind in "iu" and np.dtype(DTYPES[dtype]).itemsize < 8:
        return
    given = [({"w": np.array([1, 2, 3], DTYPES[dtype])}, 1.0) for _ in range(3)]
    for number in range(3):
        arrays = {"w": np.array([1, 2, odd], DTYPES[dtype])}
        updates = [*given[:number], (arrays, 1.0), *given[number + 1 :]]
        with pytest.raises((NonFinite, OutOfBounds), match=f"client 'update {number}', tensor 'w': element 2"):
            aggregate(updates)


def overlapping() -> list[tuple[str, Arrays, Arrays, Arrays]]:
    """Results that would be written over what is still to be read: two updates' arrays, and where to write."""
    memory, other = np.arange(3000, dtype=np.float32), np.ones(1000, np.float32)
    pair = {"a": other, "b": other}
    return [
        ("shifted", {"w": memory[:1000]}, {"w": other}, {"w": memory[100:1100]}),
        ("shifted back", {"w": memory[100:1100]}, {"w": other}, {"w": memory[:1000]}),
        ("another tensor", {"a": memory[:1000], "b": other}, pair, {"a": other, "b": memory[:1000]}),
        ("of each other", pair, pair, {"a": memory[:1000], "b": memory[10:1010]}),
    ]


@pytest.mark.parametrize("case", overlapping(), ids=lambda case: case[0])
def test_results_over_what_is_still_read_are_refused(case: tuple[str, Arrays, Arrays, Arrays]) -> None:
    _, first, second, out = case
    with pytest.raises(TensorMismatch, match="out: its memory overlaps that of"):
        aggregate([(first, 1.0), (second, 1.0)], out=out)
    with pytest.raises(TensorMismatch, match="out: its memory overlaps that of"):
        aggregate([(second, 1.0), (second, 1.0)], base=first, out=out)


def test_results_in_place_of_an_update_or_the_base_are_right() -> None:
    rng = np.random.default_rng(5)
    for accumulate in ("exact", "float64", "float32"):
        a, b, c = ({"w": rng.standard_normal(SIZE).astype(np.float32)} for _ in range(3))
        wanted = aggregate([(a, 1.0), (b, 3.0)], accumulate=accumulate, base=c)["w"]
        for target in (a, b, c):
            mine = [{"w": each["w"].copy()} for each in (a, b, c)]
            place = mine[0 if target is a else 1 if target is b else 2]
            aggregate([(mine[0], 1.0), (mine[1], 3.0)], accumulate=accumulate, base=mine[2], out=place)
            assert np.array_equal(place["w"], wanted)


def test_tensors_of_out_that_are_one_array_are_refused() -> None:
    one, two = np.zeros(600_000, np.float32), np.ones(600_000, np.float32)
    tied, apart = {"a": one, "b": one}, {"a": two, "b": two}
    for given in (list, iter):
        with pytest.raises(TensorMismatch, match="out: its memory overlaps that of another array of out"):
            aggregate(given([(apart, 1.0), (apart, 1.0)]), out=tied)
        with pytest.raises(TensorMismatch, match="out: its memory overlaps that of another array of out"):
            aggregate(given([(apart, 1.0)]), base=tied, out=tied)
