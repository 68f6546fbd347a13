"""Checkpoints: every kind in, one out, against NumPy; and what cannot be combined."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flcore_bench.process import ChildProcess
from safetensors.numpy import load_file, save_file

import flcore
from flcore import (
    AggregationError,
    Arrays,
    BudgetError,
    NonFinite,
    OutOfBounds,
    QuorumError,
    SpecError,
    TensorMismatch,
    WeightError,
)
from flcore.aggregation import checkpoint_aggregation
from flcore.aggregation.budget import Budget
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.model.dtypes import DTYPES
from tests.reference import nearest

LEAST = Budget.parse("64MiB")


def drawn(seed: int, size: int = 70_001) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(size // 7, 7)).astype(np.float32),
        "half": rng.normal(size=5_003).astype(np.float16),
        "brain": rng.normal(size=301).astype(ml_dtypes.bfloat16),
        "steps": np.array(int(rng.integers(0, 1000)), np.int64),
        "v": rng.normal(size=3).astype(np.float32),
        "none": np.zeros((0, 4), np.float32),
    }


def saved(directory: Path, count: int, **options: Any) -> tuple[list[Path], list[dict[str, npt.NDArray[Any]]]]:
    models = [drawn(seed) for seed in range(count)]
    paths = [directory / f"checkpoint-{number}.safetensors" for number in range(count)]
    for path, model in zip(paths, models, strict=True):
        flcore.save(model, path, {"format": "pt"}, **options)
    return paths, models


def same(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
@pytest.mark.parametrize("elements", [4096, 1 << 21])
def test_files_give_what_their_arrays_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: str, elements: int
) -> None:
    monkeypatch.setattr(checkpoint_aggregation, "RANGE_ELEMENTS", elements)
    paths, models = saved(tmp_path, 3)
    weights = [1.0, 2.5, 0.25]
    done: list[tuple[int, int]] = []
    stored = aggregate_checkpoints(
        paths,
        tmp_path / "out.safetensors",
        weights=weights,
        accumulate=accumulate,
        on_progress=lambda *d: done.append(d),
    )
    expected = flcore.aggregate(list(zip(models, weights, strict=True)), accumulate=accumulate)
    same(stored.arrays(), expected)
    same(flcore.open_model(tmp_path / "out.safetensors").arrays(), expected)
    assert stored.shards.metadata == {"format": "pt"}
    assert done[-1][0] == done[-1][1] and [d for d, _ in done] == sorted(d for d, _ in done)


def test_the_result_is_sharded_as_the_first_is_and_the_usual_loader_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rng = np.random.default_rng(1)
    models = [{name: rng.normal(size=size) for name, size in (("b", 9), ("a", 300), ("c", 2))} for _ in range(2)]
    for number, (path, bytes_) in enumerate(
        ((tmp_path / "a/model.safetensors", 2_400), (tmp_path / "b.safetensors", 9))
    ):
        flcore.save(models[number], path, {"of": str(number)}, shard_bytes=bytes_)
    stored = aggregate_checkpoints([tmp_path / "a", tmp_path / "b.safetensors"], tmp_path / "out")
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    like = flcore.open_model(tmp_path / "a").shards
    assert [[t.name for t in h.tensors] for h in stored.shards.headers] == [
        [t.name for t in h.tensors] for h in like.headers
    ]
    assert all(header.metadata == {"of": "0"} for header in stored.shards.headers)
    loaded: dict[str, npt.NDArray[Any]] = {}
    for file in stored.files:
        loaded |= load_file(file)
    expected = flcore.aggregate([(model, 1.0) for model in models])
    same({name: loaded[name] for name in expected}, expected)


def test_tensors_may_come_in_any_order(tmp_path: Path) -> None:
    paths, models = saved(tmp_path, 2)
    turned = dict(reversed(models[1].items()))
    flcore.save(turned, paths[1])
    stored = aggregate_checkpoints(paths, tmp_path / "out.safetensors")
    same(stored.arrays(), flcore.aggregate([(model, 1.0) for model in models]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_floats_become_another_dtype_and_are_rounded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(checkpoint_aggregation, "RANGE_ELEMENTS", 4096)
    paths, models = saved(tmp_path, 2)
    found = aggregate_checkpoints(paths, tmp_path / "out.safetensors", dtype=dtype).arrays()
    for name, values in found.items():
        exact = [
            (Fraction(float(a)) + Fraction(float(b))) / 2
            for a, b in zip(models[0][name].reshape(-1)[:600], models[1][name].reshape(-1)[:600], strict=True)
        ]
        assert values.dtype == (np.int64 if name == "steps" else DTYPES[dtype])
        assert all(value in nearest(e, values.dtype.name) for value, e in zip(values.reshape(-1), exact, strict=False))


def test_task_arithmetic_adds_differences_of_any_sign_and_divides_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_aggregation, "RANGE_ELEMENTS", 4096)
    (*paths, base), (*models, origin) = saved(tmp_path, 3)
    weights, scale = [1.0, -2.0], 0.3
    found = aggregate_checkpoints(paths, tmp_path / "out.safetensors", weights=weights, base=base, scale=scale).arrays()
    for name, values in found.items():
        wide = origin[name].astype(np.float64)
        added = sum(w * (m[name].astype(np.float64) - wide) for w, m in zip(weights, models, strict=True))
        expected = wide + scale * added
        rounded = np.rint(expected) if name == "steps" else expected
        assert np.array_equal(values, rounded.astype(values.dtype)), name


def test_the_base_alone_comes_back_as_it_is(tmp_path: Path) -> None:
    (path, base), (_, origin) = saved(tmp_path, 2)
    same(aggregate_checkpoints([path], tmp_path / "out.safetensors", base=base, scale=0.0).arrays(), origin)


def test_a_mean_is_the_exact_one_whatever_the_order(tmp_path: Path) -> None:
    paths, models = saved(tmp_path, 4)
    weights = [3.0, 1.0, 7.0, 2.0]
    one = aggregate_checkpoints(paths, tmp_path / "one.safetensors", weights=weights).arrays()
    two = aggregate_checkpoints(paths[::-1], tmp_path / "two.safetensors", weights=weights[::-1]).arrays()
    same(one, two)
    exact = sum(Fraction(w) * Fraction(float(m["v"][1])) for w, m in zip(weights, models, strict=True)) / 13
    assert one["v"][1] == np.float32(float(exact))


def test_one_of_its_own_inputs_may_be_replaced(tmp_path: Path) -> None:
    paths, models = saved(tmp_path, 2)
    aggregate_checkpoints(paths, paths[0])
    same(flcore.open_model(paths[0]).arrays(), flcore.aggregate([(model, 1.0) for model in models]))


def changed(tmp_path: Path, **arrays: npt.NDArray[Any] | None) -> list[Path]:
    """Return two checkpoints, of which the second has other arrays, or lacks some."""
    paths, models = saved(tmp_path, 2)
    flcore.save({name: a for name, a in {**models[1], **arrays}.items() if a is not None}, paths[1])
    return paths


BAD = np.ones(3, np.float32)
BAD[1] = np.nan


@pytest.mark.parametrize("options", [{}, {"base": "base.safetensors"}])
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"v": None}, TensorMismatch, r"^checkpoint '.*checkpoint-1.safetensors', tensor 'v': it is missing"),
        ({"x": np.zeros(2)}, TensorMismatch, r"checkpoint-1.*tensor 'x': the model has no tensor of this name"),
        ({"v": np.zeros(3)}, TensorMismatch, r"checkpoint-1.*'v': expected float32 of shape \(3,\), got float64"),
        ({"v": np.zeros(4, np.float32)}, TensorMismatch, r"expected float32 of shape \(3,\), got float32 of"),
        ({"v": BAD}, NonFinite, r"^checkpoint '.*checkpoint-1.safetensors', tensor 'v': element 1 is nan"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_its_file_and_leaves_nothing(
    tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str, options: dict[str, str]
) -> None:
    paths = changed(tmp_path, **arrays)
    flcore.save(drawn(9), tmp_path / "base.safetensors")
    before = sorted(tmp_path.iterdir())
    given = {name: tmp_path / path for name, path in options.items()}
    with pytest.raises(error, match=message):
        aggregate_checkpoints(paths, tmp_path / "out.safetensors", **given)  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_asked_for_must_make_sense(tmp_path: Path) -> None:
    paths, _ = saved(tmp_path, 2)
    out = tmp_path / "out.safetensors"
    with pytest.raises(QuorumError, match="no checkpoint was given"):
        aggregate_checkpoints([], out)
    with pytest.raises(WeightError, match="one weight for each of 2 checkpoints, got 1"):
        aggregate_checkpoints(paths, out, weights=[1.0])
    with pytest.raises(WeightError, match=r"checkpoint-1.*not -1.0"):
        aggregate_checkpoints(paths, out, weights=[1.0, -1.0])
    with pytest.raises(WeightError, match="expected a finite scale, got inf"):
        aggregate_checkpoints(paths, out, base=paths[0], scale=np.inf)
    with pytest.raises(
        SpecError, match=r"expected a dtype of floats \(float64, float32, float16, bfloat16\), got 'int8'"
    ):
        aggregate_checkpoints(paths, out, dtype="int8")
    with pytest.raises(SpecError, match=r"NAME\.safetensors"):
        aggregate_checkpoints(paths, tmp_path / "model.safetensors.index.json")
    with pytest.raises(BudgetError, match="2000 checkpoints at once take 125MiB or more, and the budget is 64MiB"):
        aggregate_checkpoints(paths * 1000, out, budget=LEAST)
    assert not out.exists()


@pytest.mark.parametrize(
    ("value", "dtype", "error", "words"),
    [
        (np.float32(1e6), "float16", OutOfBounds, r"a\.safetensors', tensor 'w': element 1 has magnitude 1e.06"),
        (
            np.float32(5e4),
            "float16",
            AggregationError,
            "'w': element 1 of the result, 100000, does not fit into",
        ),
        (np.int8(100), None, AggregationError, "'w': element 1 of the result, 200, does not fit into int8"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, value: Any, dtype: str | None, error: type[Exception], words: str
) -> None:
    for name, factor in (("base", 0), ("a", 1)):
        save_file({"w": np.array([0, value * factor], value.dtype)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(error, match=words):
        aggregate_checkpoints(
            [tmp_path / "a.safetensors"] * 2,
            tmp_path / "out.safetensors",
            base=tmp_path / "base.safetensors",
            dtype=dtype,
        )


@pytest.mark.serial
def test_memory_is_the_budget_and_what_python_takes(tmp_path: Path) -> None:
    size = 60_000_000
    for name in "ab":
        flcore.save({"w": np.full(size, ord(name), np.float32)}, tmp_path / f"{name}.safetensors")
    setup = {
        "kind": "aggregate",
        "paths": [str(tmp_path / f"{name}.safetensors") for name in "ab"],
        "out": str(tmp_path / "out"),
    }
    with ChildProcess("flcore_bench.peak_memory", setup, threads=2) as process:
        assert process.receive()["peak_bytes"] <= LEAST.nbytes + (320 << 20)
    assert (flcore.open_model(tmp_path / "out").tensor("w") == 97.5).all()
