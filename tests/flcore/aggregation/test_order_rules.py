"""The rules `median` and `trimmed_mean` in every entry point, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore import Aggregator, JobError, ModelSpec, aggregate
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.job.contract import ServerContract
from tests.flcore.command import said
from tests.flcore.conftest import Stage, adding

NAMES = ["median", "trimmed_mean(f=1)", "median(weighted=false)", "trimmed_mean(f=2, weighted=false)"]


def updates() -> list[tuple[dict[str, Any], float]]:
    rng = np.random.default_rng(3)
    return [
        (
            {"w": rng.standard_normal(700).astype(np.float32), "n": rng.integers(-9, 9, 5), "b": rng.random(5) < 0.5},
            float(number % 3 + 1),
        )
        for number in range(6)
    ]


def bits(model: Any) -> bytes:
    return b"".join(np.asarray(model[name]).tobytes() for name in ("w", "n", "b"))


@pytest.mark.parametrize("name", NAMES)
def test_all_entry_points_give_the_same_bits_in_any_order(name: str, tmp_path: Path) -> None:
    wanted = aggregate(updates(), rule=name)
    assert [wanted[key].dtype for key in ("w", "n", "b")] == [np.float32, np.int64, np.bool_]
    assert bits(aggregate(updates()[::-1], rule=name)) == bits(wanted)
    assert bits(aggregate(iter(updates()), rule=name)) == bits(wanted)
    assert bits(aggregate([(arrays, weight / 8) for arrays, weight in updates()], rule=name)) == bits(wanted)
    running, spec = IncrementalAggregator(rule=name), ModelSpec.of(updates()[0][0])
    for storage in (Storage("batch", Staging(0), read_chunks=2), Storage("batch", Staging(1 << 20), read_chunks=2)):
        aggregator = Aggregator(spec, rule=name, storage=storage)
        for number, (arrays, weight) in enumerate(updates()):
            with aggregator.update(client=f"{number}", weight=weight) as update:
                update.write_all(arrays)
        assert bits(aggregator.finish().arrays()) == bits(wanted)
    for number, (arrays, weight) in enumerate(updates()):
        running.add(arrays, weight, f"{number}")
        flcore.save(arrays, tmp_path / f"{number}.safetensors")
    assert bits(running.finish()) == bits(wanted)
    paths, weights = [tmp_path / f"{number}.safetensors" for number in range(6)], [weight for _, weight in updates()]
    stored = aggregate_checkpoints(paths, tmp_path / "out.safetensors", rule=name, weights=weights)
    assert bits(stored.arrays()) == bits(wanted)


def test_they_are_the_median_and_the_trimmed_mean_and_integers_are_rounded_half_to_even() -> None:
    plain = [(arrays, 1.0) for arrays, _ in updates()]
    ordered = np.sort(np.stack([arrays["w"].astype(np.float64) for arrays, _ in plain]), axis=0)
    assert np.array_equal(aggregate(plain, rule=flcore.median())["w"], ordered[2:4].mean(axis=0).astype(np.float32))
    found = aggregate(plain, rule=flcore.trimmed_mean(f=2))["w"]
    assert np.array_equal(found, ordered[2:4].mean(axis=0).astype(np.float32))
    numbers = np.sort(np.stack([arrays["n"] for arrays, _ in plain]), axis=0)
    assert np.array_equal(aggregate(plain, rule="median")["n"], np.rint(numbers[2:4].mean(axis=0)))
    base = {"w": np.full(3, 10.0, np.float32)}
    moved = aggregate([({"w": np.full(3, value, np.float32)}, 1.0) for value in (1, 2, 90)], rule="median", base=base)
    assert moved["w"].tolist() == [12.0] * 3


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("trimmed_mean", r"missing a required argument: 'f'; it is used as trimmed_mean\(f: int"),
        ("trimmed_mean(f=0)", "f is a whole number of at least 1, got 0"),
        ("trimmed_mean(f=1.5)", "of at least 1, got 1.5"),
        ("trimmed_mean(g=1)", "missing a required argument"),
        ("median(weighted=1)", "weighted is true or false, got 1"),
        ("trimmed_mean(f=1, f=2)", "expected each key once, got f again"),
        ("median(weighted=yes)", "expected key=value with a number, true or false, got 'weighted=yes'"),
        ("medain", "did you mean 'median'"),
    ],
)
def test_a_name_with_wrong_arguments_is_refused(rule: str, words: str) -> None:
    with pytest.raises(JobError, match=words):
        aggregate(updates(), rule=rule)


def test_too_few_updates_are_an_error_that_says_how_many_are_needed() -> None:
    with pytest.raises(flcore.AggregationError, match=r"rule 'trimmed_mean\(f=3\)' needs at least 7 updates, got 6"):
        aggregate(updates(), rule="trimmed_mean(f=3)")
    with pytest.raises(flcore.WeightError, match="the weights of all 6 updates are zero"):
        aggregate([(arrays, 0.0) for arrays, _ in updates()], rule="median")
    with pytest.raises(flcore.NonFinite, match="update 1"):
        aggregate([*updates()[:1], ({**updates()[0][0], "w": np.full(700, np.nan, np.float32)}, 1.0)], rule="median")
    with pytest.raises(JobError, match="rule 'median' needs all updates at once: choose the plan batch"):
        Aggregator(ModelSpec.of(updates()[0][0]), rule="median", plan="streaming", average_bytes=True)


def test_a_job_names_a_rule_with_arguments_as_a_table_or_as_text() -> None:
    for rule in ({"name": "trimmed_mean", "f": 2}, "trimmed_mean(f=2)"):
        server = ServerContract.model_validate({"model": "a.py:b", "rounds": 1, "rule": rule})
        assert server.rule == "trimmed_mean(f=2)"
    chained = [{"name": "nnm", "f": 1}, {"name": "trimmed_mean", "f": 1}, {"name": "fed_adam", "lr": 0.1}]
    server = ServerContract.model_validate({"model": "a.py:b", "rounds": 1, "rule": chained})
    assert server.rule == "nnm(f=1) + trimmed_mean(f=1) + fed_adam(lr=0.1)"
    with pytest.raises(ValueError, match="missing a required argument: 'f'"):
        ServerContract.model_validate({"model": "a.py:b", "rounds": 1, "rule": {"name": "trimmed_mean"}})


def test_a_job_follows_it_and_needs_a_quorum_of_as_many_updates(stage: Stage) -> None:
    with pytest.raises(JobError, match=r"server.quorum: rule 'trimmed_mean\(f=1\)' needs at least 3 updates, got 2"):
        stage.open(rule="trimmed_mean(f=1)", clients=3, quorum=2, wait_for=2, out=stage.directory / "out")


def test_a_job_is_not_moved_by_one_client(stage: Stage) -> None:
    stage.open(rule="median", clients=3, quorum=3, wait_for=3, out=stage.directory / "out")
    for number, value in enumerate((1.0, 2.0, 90.0)):
        stage.client(f"client-{number + 1}", adding(value, weight=1.0))
    outcome = stage.result()
    assert {float(value) for array in outcome.model.arrays().values() for value in array.reshape(-1)} == {2.0}


def test_the_command_line_lists_and_explains_them(tmp_path: Path) -> None:
    assert "The coordinate-wise median" in said("rules", cwd=tmp_path)
    assert "Tolerance: hostile updates" in said("rules", "trimmed_mean", cwd=tmp_path)
