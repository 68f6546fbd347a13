"""The plans: the same bits from both; streaming folds in the background, frees updates, and reports errors."""

import os
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flcore_kernels.cpu.backend import CpuBackend
from flcore_transport.piece_format import piece_elements

from flcore import Aggregator, Arrays, JobError, Model, ModelSpec, QuorumError, UpdateError, WeightError
from flcore.aggregation.budget import Budget
from flcore.aggregation.prefetch import BackgroundCall, BackgroundThread, prefetch
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.errors import UpdatesLost

SIZE = piece_elements("float32") + 1000
CLIENTS = 11


def update(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "w": (rng.standard_normal(SIZE) * 10.0 ** rng.integers(-3, 4)).astype(np.float32),
        "b": rng.standard_normal((3, 7)).astype(ml_dtypes.bfloat16),
        "n": np.array(rng.integers(0, 1000), np.int64),
        "none": np.zeros((4, 0), np.float16),
    }


def give(aggregator: Aggregator, seed: int) -> None:
    with aggregator.update(client=f"client-{seed:02d}", weight=1.0 + seed) as staged:
        for name, array in update(seed).items():
            staged.write(name, array)


def combined(plan: str, order: list[int], **options: Any) -> Arrays:
    aggregator = Aggregator(ModelSpec.of(update(0)), plan=plan, **options)
    for seed in order:
        give(aggregator, seed)
    return aggregator.finish().arrays()


def _out_of_memory(*_: Any) -> None:
    raise MemoryError


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Folds wait until this is set."""
    opened, fold = threading.Event(), CpuBackend.fold

    def waiting(*arguments: Any) -> None:
        assert opened.wait(20)
        fold(*arguments)

    monkeypatch.setattr(CpuBackend, "fold", waiting)
    yield opened
    opened.set()


@pytest.mark.parametrize("has_base", [False, True])
def test_exact_sums_give_the_same_bits_in_both_plans(has_base: bool) -> None:
    base = Model.of(update(99)) if has_base else None
    expected = combined("batch", list(range(CLIENTS)), base=base)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(CLIENTS).tolist()
        found = combined("streaming", order, base=base)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
@pytest.mark.parametrize("read_chunks", [1, 3, 16])
def test_updates_on_disk_give_the_same_bits(plan: str, accumulate: str, read_chunks: int) -> None:
    base = Model.of(update(99))
    order = list(range(CLIENTS))
    expected = combined("batch", order, base=base, accumulate=accumulate)
    nbytes = ModelSpec.of(update(0)).nbytes
    for memory_bytes in (0, 4 * nbytes):  # all on disk, and only those beyond the quota
        storage = Storage(plan, Staging(memory_bytes), read_chunks=read_chunks)
        found = combined(plan, order, base=base, accumulate=accumulate, storage=storage)
        for name, array in expected.items():
            assert same(found[name], array, accumulate, plan)


def same(found: Any, expected: Any, accumulate: str, plan: str) -> bool:
    """The bits never differ, but of float sums in the order of arrival: the group decides what they are scaled by."""
    if accumulate == "exact" or plan == "batch" or found.dtype.kind in "iu":
        return bool(found.tobytes() == expected.tobytes())
    return np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol=2e-2, atol=1e-2)


def test_a_budget_bounds_what_is_in_memory() -> None:
    spec = ModelSpec.of(update(0))
    aggregator = Aggregator(spec, budget_bytes=64 << 20)
    held = [aggregator.stage(f"{number}", 1.0) for number in range(CLIENTS)]
    for staged in held:
        aggregator.allocate(staged).result(0)
    assert sum(staged.is_in_memory for staged in held) == min(CLIENTS, Budget(64 << 20).staging_bytes // spec.nbytes)
    assert all(staged.is_in_memory or staged.is_on_disk for staged in held)


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_discarded_updates_take_no_memory_and_leave_no_trace(plan: str) -> None:
    staging = Staging(4 * ModelSpec.of(update(0)).nbytes)
    aggregator = Aggregator(ModelSpec.of(update(0)), storage=Storage(plan, staging))
    give(aggregator, 0)
    give(aggregator, 1)
    aggregator.discard()
    assert staging.quota.reserve(4 * ModelSpec.of(update(0)).nbytes, may_wait=False).result(0)
    give(aggregator, 2)
    assert aggregator.finish().arrays()["n"] == update(2)["n"]


def test_a_commit_does_not_wait_for_the_fold(gate: threading.Event) -> None:
    aggregator = Aggregator(ModelSpec.of(update(0)), plan="streaming")
    for seed in range(CLIENTS):
        give(aggregator, seed)
    gate.set()
    expected = combined("batch", list(range(CLIENTS)))
    assert aggregator.finish().arrays()["w"].tobytes() == expected["w"].tobytes()


def test_an_update_is_freed_when_it_is_folded() -> None:
    aggregator = Aggregator(ModelSpec.of(update(0)), plan="streaming")
    staged = aggregator.stage("a", 1.0)
    aggregator.allocate(staged).result()
    for name, array in update(0).items():
        staged.write(name, array)
    assert staged.is_in_memory
    let_go, drop = threading.Event(), staged.discard
    staged.discard = lambda: (drop(), let_go.set())[0]  # type: ignore[method-assign, func-returns-value]
    aggregator.commit(staged)
    assert let_go.wait(20)
    assert not staged.is_in_memory
    aggregator.finish()


def test_what_a_fold_raises_is_told_at_the_end_and_the_next_round_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.of({"w": np.zeros(3, np.float32)})
    aggregator = Aggregator(spec, plan="streaming", accumulate="float32")
    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "fold", _out_of_memory)
        with aggregator.update(client="a", weight=1.0) as staged:
            staged.write("w", np.full(3, 3.0, np.float32))
        with pytest.raises(MemoryError):
            aggregator.finish()
    with aggregator.update(client="a", weight=2.0) as staged:
        staged.write("w", np.full(3, 5.0, np.float32))
    assert aggregator.finish().arrays()["w"].tolist() == [5.0] * 3


def test_nothing_and_nothing_but_zeros_are_told_apart() -> None:
    spec = ModelSpec.of({"w": np.zeros(3, np.float32)})
    aggregator = Aggregator(spec, plan="streaming")
    with pytest.raises(QuorumError):
        aggregator.finish()
    with aggregator.update(client="a", weight=0.0) as staged:
        staged.write("w", np.ones(3, np.float32))
    with pytest.raises(WeightError):
        aggregator.finish()


def test_an_unknown_plan_is_refused() -> None:
    with pytest.raises(JobError, match="plan 'later' does not exist; expected one of batch, streaming"):
        Aggregator(ModelSpec.of(update(0)), plan="later")


def test_a_fold_that_fails_leaves_nothing_for_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.of({"w": np.zeros(3, np.float32)})
    aggregator, fold, calls = Aggregator(spec, plan="streaming", accumulate="float32"), CpuBackend.fold, count()

    def failing(*arguments: Any) -> None:
        if is_failing and next(calls) % 3 == 0:
            raise MemoryError
        fold(*arguments)

    monkeypatch.setattr(CpuBackend, "fold", failing)
    for round_ in range(20):
        is_failing = round_ % 2 == 1
        for client in range(30):
            with aggregator.update(client=f"{client}", weight=1.0) as staged:
                staged.write("w", np.full(3, 7.0 if is_failing else 5.0, np.float32))
        if is_failing:
            with pytest.raises(MemoryError):
                aggregator.finish()
        else:
            assert aggregator.finish().arrays()["w"].tolist() == [5.0] * 3


def damage(folder: Path, how: str, segment: int = 0) -> None:
    """Damage the files of one staged update."""
    (file,) = folder.glob(f"segment-{segment}.arrows")
    if how == "cut":
        os.truncate(file, 1000)
    else:
        file.unlink()


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("how", ["cut", "removed"])
@pytest.mark.parametrize("read_chunks", [2, 16])
def test_an_update_that_cannot_be_read_back_is_left_out_and_named(
    plan: str, how: str, read_chunks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(
        ModelSpec.of(update(0)), storage=Storage(plan, Staging(0, tmp_path / "staging"), read_chunks=read_chunks)
    )
    folds: list[Any] = []
    monkeypatch.setattr(BackgroundThread, "submit", _later(folds, BackgroundThread.submit))
    for seed in range(5):
        give(aggregator, seed)
    for number in (2, 5):
        damage(tmp_path / "staging" / str(number), how)
    monkeypatch.undo()
    for fold in folds:
        fold()
    found = aggregator.finish().arrays()
    expected = combined("batch", [0, 2, 3])
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    assert sorted(aggregator.lost) == ["client-01", "client-04"]
    assert "client 'client-01': the disk does not keep it" in aggregator.lost["client-01"]
    give(aggregator, 7)
    aggregator.finish()
    assert not aggregator.lost and not list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_updates_that_are_lost_may_be_committed_once_more(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(ModelSpec.of(update(0)), storage=Storage(plan, Staging(0, tmp_path / "staging")))
    folds: list[Any] = []
    monkeypatch.setattr(BackgroundThread, "submit", _later(folds, BackgroundThread.submit))
    for seed in range(4):
        give(aggregator, seed)
    damage(tmp_path / "staging" / "3", "cut")
    monkeypatch.undo()
    for fold in folds:
        fold()
    with pytest.raises(UpdatesLost) as caught:
        aggregator.finish(exclude_lost=False)
    assert list(caught.value.lost) == ["client-02"]
    with pytest.raises(UpdateError, match="it has an update in this aggregation already"):
        give(aggregator, 1)
    give(aggregator, 2)
    found, expected = aggregator.finish().arrays(), combined("batch", [0, 1, 2, 3])
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    assert not aggregator.lost and not list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_a_round_that_may_be_restored_takes_no_update_in_between(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(ModelSpec.of(update(0)), storage=Storage(plan, Staging(0, tmp_path / "staging")))
    folds: list[Any] = []
    monkeypatch.setattr(BackgroundThread, "submit", _later(folds, BackgroundThread.submit))
    for seed in range(3):
        give(aggregator, seed)
    monkeypatch.undo()
    damage(tmp_path / "staging" / "2", "cut")
    for fold in folds:
        fold()
    finish, kind = aggregator._plan.finish, type(aggregator._plan)

    def committing(_: Any, *round_: Any, **options: Any) -> Any:
        with pytest.raises(UpdateError, match="the aggregation is being finished"):
            give(aggregator, 3)
        return finish(*round_, **options)

    with monkeypatch.context() as patch, pytest.raises(UpdatesLost):
        patch.setattr(kind, "finish", committing)
        aggregator.finish(exclude_lost=False)
    for seed in (1, 3):
        give(aggregator, seed)
    found, expected = aggregator.finish().arrays(), combined("batch", [0, 1, 2, 3])
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def _later(folds: list[Any], submit: Any) -> Any:
    """Have a streaming plan's folds wait until the test has damaged what they read."""

    def waiting(thread: Any, work: Any) -> Any:
        if "_fold_waiting" not in work.__code__.co_names:
            return submit(thread, work)
        later = BackgroundCall(work)
        folds.append(later.run)
        return later

    return waiting


def test_a_round_of_which_nothing_can_be_read_back_has_no_result(tmp_path: Path) -> None:
    aggregator = Aggregator(ModelSpec.of(update(0)), storage=Storage("batch", Staging(0, tmp_path / "staging")))
    give(aggregator, 0)
    damage(tmp_path / "staging" / "1", "removed")
    with pytest.raises(QuorumError, match="no committed update can be read back: client 'client-00'"):
        aggregator.finish()
    give(aggregator, 0)
    assert aggregator.finish().arrays()["n"] == update(0)["n"]


def test_nothing_is_read_ahead_any_more_once_a_loop_has_ended() -> None:
    reading, read = threading.Event(), []

    def fetch(item: int) -> int:
        if item == 1:
            reading.set()
            time.sleep(0.05)
        read.append(item)
        return item

    loop = prefetch(fetch, iter([0, 1, 2]))
    assert next(loop) == (0, 0) and reading.wait(20)
    del loop  # as the end of a `for` does
    assert read == [0, 1]
