"""What holds for every rule: what a result does not depend on, and what every rule refuses, passes on and tells."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

import flcore
from flcore import AggregationError, Aggregator, Model, ModelSpec, NonFinite, OutOfBounds, QuorumError, aggregate
from flcore.aggregation import checkpoint_aggregation
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.rules.kinds import min_updates
from flcore.rules.named import resolve_rule
from tests.flcore.aggregation.rule_examples import ALL, CLIENTS, OF_A_BASE, OF_DISTANCES, WITHOUT_BASE
from tests.reference import DTYPES, FLOATS

Arrays = dict[str, npt.NDArray[Any]]
Updates = list[tuple[Arrays, float]]

SIZE = 20_000
"""Elements of the largest tensor: read from the disk, it is several ranges."""


def drawn(dtype: str, size: int = SIZE, scale: float = 1.0) -> Updates:
    """Return updates in the order of their digests, so that names in this order break ties as digests do."""
    rng = np.random.default_rng(7)
    found: Updates = [
        (
            {
                "w": (scale * rng.standard_normal(size)).astype(DTYPES[dtype]),
                "v": (scale * rng.standard_normal((3, 5))).astype(np.float32),
                "n": rng.integers(-99, 99, 5),
                "b": rng.random(5) < 0.5,
            },
            float(number % 3 + 1),
        )
        for number in range(CLIENTS)
    ]
    found[3][0]["w"] *= DTYPES[dtype].type(50)
    return sorted(found, key=lambda update: digest(update[0]))


def digest(arrays: Arrays) -> str:
    model = Model.of(arrays)
    tensors = [span.tensor.name for segment in model.spec.segments for span in segment.spans]
    return xxhash.xxh3_128(b"".join(arrays[name].tobytes() for name in tensors)).hexdigest()


def base_of(updates: Updates, rule: str) -> Arrays | None:
    """Return a base for rules that need one. It has no effect on the elements that it is added to: it is zeros."""
    return {name: np.zeros_like(values) for name, values in updates[0][0].items()} if rule in OF_A_BASE else None


def bits(arrays: Mapping[str, Any]) -> bytes:
    return b"".join(np.asarray(arrays[name]).tobytes() for name in sorted(arrays))


def named(updates: Updates, rule: str, storage: Storage | None = None, **settings: Any) -> Aggregator:
    """Return an aggregator that has all updates, the last one first. Names are a, b, c ..."""
    aggregator = Aggregator(ModelSpec.of(updates[0][0]), rule=rule, storage=storage, **settings)
    for k in range(len(updates))[::-1]:
        with aggregator.update(client=chr(97 + k), weight=updates[k][1]) as update:
            update.write_all(updates[k][0])
    return aggregator


def results(updates: Updates, rule: str, folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the result of every entry point and plan, with its name."""
    base = base_of(updates, rule)
    yield "in another order", aggregate([updates[k] for k in (3, 0, 6, 1, 5, 2, 4)], rule=rule, base=base)
    yield "an iterator", aggregate(iter(updates), rule=rule, base=base)
    yield "other weights", aggregate([(arrays, weight / 8) for arrays, weight in updates], rule=rule, base=base)
    model = None if base is None else Model.of(base)
    for name, memory, chunks in (("in memory", None, 16), ("on disk", 0, 1), ("some on disk", 200_000, 2)):
        storage = Storage("batch", Staging(memory), read_chunks=chunks)
        yield name, named(updates, rule, storage, base=model).finish().arrays()
    if base is None:
        paths = [folder / f"{number}.safetensors" for number in range(len(updates))]
        for path, (arrays, _) in zip(paths, updates, strict=True):
            flcore.save(arrays, path)
        weights = [weight for _, weight in updates]
        stored = checkpoint_aggregation.aggregate_checkpoints(
            paths, folder / "o.safetensors", rule=rule, weights=weights
        )
        yield "files", stored.arrays()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", ALL)
def test_bits_depend_on_values_alone(rule: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_aggregation, "RANGE_ELEMENTS", 1 << 12)
    updates = drawn(dtype)
    wanted = aggregate(updates, rule=rule, base=base_of(updates, rule))
    assert {name: values.dtype for name, values in wanted.items()} == {k: v.dtype for k, v in updates[0][0].items()}
    for name, found in results(updates, rule, tmp_path):
        if (rule, dtype, name) == ("mean", "float64", "other weights"):
            continue  # an exact sum has 48 bits of its largest term, and which these are depends on the weights
        assert bits(found) == bits(wanted), name


@pytest.mark.parametrize("rule", ["trimmed_mean(f=1)", "multi_krum(f=1)", "nnm(f=1) + geometric_median", *OF_A_BASE])
def test_threads_change_no_bit(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, found = drawn("float32", 400_000), set()
    for threads in ("1", "3"):
        monkeypatch.setenv("FLCORE_THREADS", threads)
        found.add(bits(aggregate(updates, rule=rule, base=base_of(updates, rule))))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", ALL)
def test_of_identical_updates_the_result_is_one_of_them(rule: str, dtype: str) -> None:
    (arrays, _), *_ = drawn(dtype, 60, 1e-3)  # too short to be clipped
    reference = None if rule not in OF_A_BASE else {name: np.zeros_like(values) for name, values in arrays.items()}
    model = None if reference is None else Model.of(reference)
    updates = [(arrays, float(k % 4 + 1)) for k in range(CLIENTS)]
    found = named(updates, rule, reference=model).finish().arrays()
    if dtype == "float64":  # exact sums have 48 bits of the largest element
        assert np.allclose(found.pop("w"), arrays["w"], rtol=0, atol=2**-44 * np.abs(arrays["w"]).max())
    assert bits(found) == bits({name: arrays[name] for name in found})


@pytest.mark.parametrize("rule", ALL)
def test_one_client_with_nan_is_refused_by_name_and_the_rest_is_right(rule: str) -> None:
    updates = drawn("float32", 300)
    base = base_of(updates, rule)
    spoiled = {**updates[2][0], "v": np.full((3, 5), np.nan, np.float32)}
    with pytest.raises(NonFinite, match=r"update 7.*'v'"):
        aggregate([*updates, (spoiled, 1.0)], rule=rule, base=base)
    aggregator = named(updates, rule, base=None if base is None else Model.of(base))
    with pytest.raises(NonFinite, match=r"client 'x'.*'v'"), aggregator.update(client="x", weight=1.0) as update:
        update.write_all(spoiled)
    assert bits(aggregator.finish().arrays()) == bits(aggregate(updates, rule=rule, base=base))


@pytest.mark.parametrize("rule", [rule for rule in (*OF_DISTANCES, *OF_A_BASE) if "bucketing" not in rule])
def test_an_update_whose_distance_would_be_infinite_is_refused_by_name_and_the_rest_is_right(rule: str) -> None:
    updates = drawn("float64", 30)
    base = base_of(updates, rule)
    huge = {**updates[2][0], "w": np.full(30, 1e200)}
    with pytest.raises(OutOfBounds, match="'update 7', tensor 'w'"):
        aggregate([*updates, (huge, 1.0)], rule=rule, base=base)
    aggregator = named(updates, rule, base=None if base is None else Model.of(base))
    with pytest.raises(OutOfBounds, match="client 'x'"), aggregator.update(client="x", weight=1.0) as update:
        update.write_all(huge)
    assert bits(aggregator.finish().arrays()) == bits(aggregate(updates, rule=rule, base=base))


@pytest.mark.parametrize("rule", ["multi_krum(f=1, m=2)", "multi_krum(f=1)", "mda(f=1)"])
def test_selected_updates_without_any_weight_count_alike(rule: str) -> None:
    updates = [({"w": np.array([value])}, float(value > 1)) for value in (0.0, 0.1, 0.2, 0.3, 50.0)]
    assert aggregate(updates, rule=rule)["w"].tolist() == pytest.approx([0.15])


@pytest.mark.parametrize("rule", ALL)
def test_too_few_updates_are_refused_with_the_number_that_is_needed(rule: str) -> None:
    updates = drawn("float32", 30)
    base, least = base_of(updates, rule), min_updates(resolve_rule(rule))
    with pytest.raises(QuorumError):
        aggregate([], rule=rule, base=base)
    with pytest.raises(QuorumError):
        Aggregator(ModelSpec.of(updates[0][0]), rule=rule, base=None if base is None else Model.of(base)).finish()
    assert bits(aggregate(updates[:least], rule=rule, base=base))
    if least > 1:
        words = f"needs at least {least} updates, got {least - 1}"
        with pytest.raises(AggregationError, match=words):
            aggregate(updates[: least - 1], rule=rule, base=base)
        with pytest.raises(AggregationError, match=words):
            named(updates[: least - 1], rule, base=None if base is None else Model.of(base)).finish()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", ALL)
def test_whole_models_with_their_reference_are_differences_with_a_base(rule: str, dtype: str) -> None:
    updates = drawn(dtype, 300, 0.1)
    base = {name: np.ones_like(values) for name, values in drawn(dtype, 300)[0][0].items()} | {"b": np.zeros(5, bool)}
    whole = [({k: v if k == "b" else v + base[k] for k, v in arrays.items()}, weight) for arrays, weight in updates]
    found = named(whole, rule, reference=Model.of(base)).finish().arrays()
    wanted = named(updates, rule, base=Model.of(base)).finish().arrays()
    for name, values in wanted.items():
        rounding = 1 if name == "n" else 0 if name == "b" else 2e-6  # a half is rounded to even
        assert np.abs(np.asarray(found[name], float) - np.asarray(values, float)).max() <= rounding, name


@pytest.mark.parametrize("rule", WITHOUT_BASE)
def test_elements_that_have_no_mean_pass(rule: str) -> None:
    mask = np.array([0.0, -np.inf, np.nan, 0.0], np.float32)
    sentinels = np.array([2**63 - 1, -(2**53) - 1, 2**53 + 1])
    updates = [({**arrays, "mask": mask, "sentinels": sentinels}, weight) for arrays, weight in drawn("float32", 300)]
    plain = named(drawn("float32", 300), rule).finish().arrays()
    known = {name: np.zeros_like(values) for name, values in plain.items()} | {"mask": mask, "sentinels": sentinels}
    result = named(updates, rule, reference=Model.of(known)).finish().arrays()
    assert bits({name: result[name] for name in plain}) == bits(plain)
    for found in (result, aggregate(updates, rule=rule)):
        assert found["mask"].tobytes() == mask.tobytes()
        assert found["sentinels"].tolist() == sentinels.tolist()


@pytest.mark.parametrize("rule", OF_A_BASE)
def test_elements_of_a_base_that_have_no_mean_pass(rule: str) -> None:
    mask, sentinels = np.array([0.0, -np.inf], np.float32), np.array([2**63 - 1, -(2**53) - 1])
    special = {"mask": mask, "sentinels": sentinels}
    updates = drawn("float32", 300)
    base = {name: np.ones_like(values) for name, values in updates[0][0].items()} | {"b": np.zeros(5, bool)}
    plain = aggregate(updates, rule=rule, base=base)
    still = {name: np.zeros_like(values) for name, values in special.items()}
    found = aggregate(
        [({**arrays, **still}, weight) for arrays, weight in updates], rule=rule, base={**base, **special}
    )
    assert bits({name: found[name] for name in special}) == bits(special)
    assert bits({name: found[name] for name in plain}) == bits(plain)
    whole = [({**arrays, **special}, weight) for arrays, weight in updates]
    result = named(whole, rule, reference=Model.of({**base, **special})).finish().arrays()
    assert bits({name: result[name] for name in special}) == bits(special)
