"""A server that is killed at a named point of a round, and started again, ends with the same bits."""

import os
import shutil
from pathlib import Path

import pytest

from flcore.server.audit_chain import verify
from flcore.server.recorded_run import Durability
from tests.faults.copied_runs import Asked, Federation, history_of, is_over, recorded_answers, results, rounds
from tests.faults.hooks import Hooks, without_syncs
from tests.faults.kill_points import AFTER_RESTART, CLIENTS, PIECES, ROUNDS, KillPoint, points_of

QUICK = [
    pytest.param("batch", "disk", slice(0, None, 4), id="batch-disk"),
    pytest.param("streaming", "disk", slice(2, None, 4), id="streaming-disk"),
    pytest.param("batch", "memory", slice(0, None, 9), id="batch-memory"),
    pytest.param("streaming", "memory", slice(4, None, 9), id="streaming-memory"),
]
"""Shares of the points: every second one in one of the plans."""

WHOLE = [
    pytest.param(plan, durability, slice(None), id=f"{plan}-{durability}-all", marks=pytest.mark.stress)
    for plan in ("batch", "streaming")
    for durability in ("disk", "memory")
]

ALL = {
    (client, task, number) for client in CLIENTS for task in ("train", "validate") for number in range(1, ROUNDS + 1)
}


def difference(run: Path, undisturbed: Path, federation: Federation, recorded: set[tuple[str, str, int]]) -> str:
    """Continue a copy, and return how it differs from the undisturbed run; empty if it does not."""
    try:
        over = is_over(federation, run)
    except Exception as error:  # noqa: BLE001 - the other points are examined all the same
        return f"it does not go on: {type(error).__name__}: {error}"
    asked: Asked = federation.asked
    left, expected = ({path.name for path in each.iterdir()} for each in (run, undisturbed))
    wrong = []
    if results(run) != results(undisturbed):
        wrong.append("the models differ")
    if rounds(history_of(run)) != rounds(history_of(undisturbed)):
        wrong.append("the history differs")
    if left != expected and not over:
        wrong.append(f"files: {sorted(left ^ expected)}")
    if verify(run / "audit.jsonl").fault is not None:
        wrong.append("the audit log's chain is broken")
    if again := {key for key in recorded if asked[key]}:
        wrong.append(f"asked again for {sorted(again)}")
    if not over and (other := {key: asked[key] for key in ALL - recorded if asked[key] != 1}):
        wrong.append(f"not asked once: {other}")
    return "; ".join(wrong)


def examine(federation: Federation, undisturbed: Path, run: Path, points: list[KillPoint]) -> None:
    """Run with a copy at each point, and continue each copy."""
    copies = federation.run_with_copies(run, points)
    assert not [point.name for point in points if point not in copies], "points that were not reached"
    failed = {}
    for point, copy in copies.items():
        recorded = recorded_answers(copy, federation.durability)
        if found := difference(copy, undisturbed, federation, recorded):
            failed[point.name] = found
        shutil.rmtree(copy)
    assert not failed


def test_each_plan_has_at_least_sixty_points_with_names_of_their_own() -> None:
    for plan in ("batch", "streaming"):
        points = points_of(plan, "disk")
        assert len({point.name for point in points}) == len(points) >= 60


@pytest.mark.long
@pytest.mark.parametrize(("plan", "durability", "share"), QUICK + WHOLE)
def test_a_run_goes_on_from_each_point_with_the_same_bits(
    tmp_path: Path, kernels: None, plan: str, durability: Durability, share: slice
) -> None:
    with without_syncs():
        federation = Federation(tmp_path, plan, durability)
        undisturbed = tmp_path / "undisturbed"
        federation.run(undisturbed)
        assert set(federation.asked) == ALL
        examine(federation, undisturbed, tmp_path / "run", points_of(plan, durability)[share])


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_a_server_that_goes_on_is_killed_again(tmp_path: Path, kernels: None, plan: str) -> None:
    """In round 3, one client has a receipt, and another one's update is cut; the history lacks the end of a line."""
    first = KillPoint("before", "flcore.aggregation.kept_staging:KeptStore.append", 3, hit=PIECES + 2)
    with without_syncs():
        federation = Federation(tmp_path, plan, "disk")
        undisturbed = tmp_path / "undisturbed"
        federation.run(undisturbed)
        run = federation.run_with_copies(tmp_path / "first", [first])[first]
        assert len(recorded_answers(run, "disk")) == len(CLIENTS) * 4 + 1
        os.truncate(run / "history.jsonl", (run / "history.jsonl").stat().st_size - 10)
        examine(federation, undisturbed, run, AFTER_RESTART)


def test_clients_have_their_goodbye_before_the_run_is_over_on_the_record(tmp_path: Path, kernels: None) -> None:
    federation, goodbyes = Federation(tmp_path, "batch", "disk"), []
    over = KillPoint("before", "flcore.server.run_state:RunState.add_facts", ROUNDS)
    with without_syncs(), Hooks([over], lambda _: goodbyes.append(federation.server.endpoint._goodbye)).installed():
        federation.run(tmp_path / "run")
    assert [goodbye and goodbye.reason for goodbye in goodbyes] == ["the job is done"]
