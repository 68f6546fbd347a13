"""What a run leaves on the disk."""

import math
import weakref
from pathlib import Path

import numpy as np
import pytest

from flcore import Model, Update, load, open_model, save
from flcore.server.history import Participation, RoundRecord
from flcore.server.results import Results
from flcore.server.run_directory import RunDirectory
from tests.flcore.conftest import START, Stage, adding


def test_the_best_model_is_a_link_to_the_last_one_until_that_is_replaced(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out", job="t", contract_fingerprint="0") as directory:
        keep_four_models(Results(directory, "accuracy:max"), tmp_path)


def keep_four_models(results: Results, tmp_path: Path) -> None:
    last, best = tmp_path / "out/model.safetensors", tmp_path / "out/best.safetensors"
    for value, accuracy, best_value in [(1, 0.5, 1), (2, 0.9, 2), (3, 0.7, 2), (4, 0.95, 4)]:
        model = Model.of({"w": np.full(3, value)})
        assert results.publish(model, {"accuracy": accuracy}).is_best == (value == best_value)
        assert load(last)["w"].tolist() == [value] * 3 and load(best)["w"].tolist() == [best_value] * 3
        assert last.samefile(best) == (value == best_value)
    models = sorted(path.name for path in last.parent.glob("*.safetensors*"))
    assert models == ["best.safetensors", "model.safetensors"]


@pytest.mark.parametrize("best", ["loss:min", "loss:max"])
def test_a_model_with_nan_is_never_the_best(tmp_path: Path, best: str) -> None:
    model = Model.of({"w": np.zeros(3, np.float32)})
    with RunDirectory(tmp_path / "out", job="job", contract_fingerprint="0" * 64) as directory:
        results = Results(directory, best)
        found = [results.publish(model, {"loss": loss}).is_best for loss in (math.nan, 0.5, math.nan, 0.5)]
    assert found == [False, True, False, False]


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("tensors", [["*"], ["b"]])
def test_published_models_have_the_metadata_of_the_initial_checkpoint(
    stage: Stage, tmp_path: Path, plan: str, tensors: list[str]
) -> None:
    save(START, tmp_path / "initial.safetensors", {"format": "pt"})
    stage.open(
        clients=1,
        model="initial.safetensors",
        best="added:max",
        tasks={"train": "weights", "validate": "metrics"},
        wire={"tensors": tensors},
        out=tmp_path / "out",
        plan=plan,
    )
    stage.client("client-1", adding(1.0), validate=lambda *_: Update(weight=1, metrics={"added": 1.0}))
    stage.result()
    for name in ("model", "best"):
        with open_model(tmp_path / f"out/{name}.safetensors") as published:
            assert published.shards.metadata == {"format": "pt"}
            assert len(published.spec.tensors) == (2 if tensors == ["*"] else 1)


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_the_models_of_every_second_round_are_kept(stage: Stage, tmp_path: Path, plan: str) -> None:
    out = tmp_path / "out"
    stage.open(clients=1, rounds=5, checkpoint_every=2, out=out, plan=plan)
    stage.client("client-1", adding(1.0))
    history = stage.result().history
    assert [record.checkpoint for record in history] == [
        "",
        "round-00002.safetensors",
        "",
        "round-00004.safetensors",
        "",
    ]
    assert sorted(path.name for path in out.glob("round-*")) == ["round-00002.safetensors", "round-00004.safetensors"]
    for number in (2, 4):
        assert (load(out / f"round-{number:05d}.safetensors")["w"] == START["w"] + number).all()
    assert (load(out / "model.safetensors")["w"] == START["w"] + 5).all()


def test_a_checkpoint_is_a_link_and_moves_aside_with_its_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out", job="t", contract_fingerprint="0") as directory:
        results = Results(directory, None, checkpoint_every=1)
        results.publish(Model.of({"w": np.zeros(3)}), {}, 1)
        assert (tmp_path / "out/round-00001.safetensors").samefile(tmp_path / "out/model.safetensors")
    with RunDirectory(tmp_path / "out", job="t", contract_fingerprint="0", fresh=True):
        assert (tmp_path / "out.1/round-00001.safetensors").exists()
        assert not (tmp_path / "out/round-00001.safetensors").exists()


def test_records_of_a_run_with_a_directory_are_read_from_its_history(tmp_path: Path) -> None:
    part = Participation(2.5, {"loss": 0.1}, 4_000, 0.3)
    records = [RoundRecord(number, ("a", "b"), {"a": part}, seconds={"round": 0.1 * number}) for number in (1, 2, 3)]
    with RunDirectory(tmp_path / "out", job="t", contract_fingerprint="0") as directory:
        on_disk, in_memory = Results(directory, None), Results(None, None)
        for record in records:
            on_disk.add(record)
            in_memory.add(record)
            assert on_disk.history == in_memory.history == records[: record.round]
        kept = weakref.ref(record)
        del records, in_memory, record
        assert kept() is None, "a long run keeps no records in memory"
        assert len(on_disk.history) == 3
