"""Cyclical weight transfer: the weights that a tour gives, its order, sites that are away, and kills."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, QuorumError, Task, Update, load
from flcore.server.history_table import read_history
from flcore.server.run_state import RunState
from tests.flcore.conftest import START, Function, Stage
from tests.flcore.workflows.staged import (
    NAMES,
    failing,
    kill_at_each_change,
    measuring,
    play,
    shorten_grace,
    without_timing,
)

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)

SCALES = {name: np.float32(factor) for name, factor in zip(NAMES, (0.5, 1.5, 1.25), strict=True)}


def stepped(name: str, array: Any) -> Any:
    """A site's training. It does not commute with that of other sites."""
    return array * SCALES[name] + SCALES[name]


def stepping(name: str, visits: list[tuple[int, str]] | None = None) -> Function:
    def train(model: Arrays, task: Task) -> Update:
        if visits is not None:
            visits.append((task.round, name))
        return Update({key: stepped(name, array) for key, array in model.items()}, weight=3.0)

    return train


def sites(visits: list[tuple[int, str]] | None = None, **trains: Function) -> dict[str, dict[str, Function]]:
    given = {name: stepping(name, visits) for name in NAMES} | {
        name.replace("_", "-"): train for name, train in trains.items()
    }
    return {name: {"train": train, "validate": measuring(1.0)} for name, train in given.items()}


def expected_after(visits: list[tuple[int, str]]) -> Any:
    array = START["w"]
    for _, name in visits:
        array = stepped(name, array)
    return array


def test_weights_travel_from_site_to_site(stage: Stage, tmp_path: Path) -> None:
    visits: list[tuple[int, str]] = []
    outcome = play(stage, tmp_path / "out", sites(visits), workflow="cyclic", rounds=6, quorum=3)
    assert sorted(visits) == [(number, name) for number in range(1, 7) for name in NAMES]
    # Sites are visited one after the other, so that the list has the order in which they trained.
    assert np.array_equal(load(tmp_path / "out/model.safetensors")["w"], expected_after(visits))
    for record in outcome.history:
        order = tuple(name for number, name in visits if number == record.round)
        assert record.sampled == order
        assert sorted(record.updates) == sorted(NAMES)
        assert record.failed == {}
        assert record.validate
    orders = {record.sampled for record in outcome.history}
    assert len(orders) > 1, "the order is drawn anew in each round"


def test_the_order_follows_from_the_seed(stage: Stage, tmp_path: Path) -> None:
    first: list[tuple[int, str]] = []
    second: list[tuple[int, str]] = []
    play(stage, tmp_path / "first", sites(first), workflow="cyclic", rounds=3)
    play(stage, tmp_path / "second", sites(second), workflow="cyclic", rounds=3)
    assert first == second


def test_a_site_that_fails_is_left_out_of_the_tour(stage: Stage, tmp_path: Path) -> None:
    visits: list[tuple[int, str]] = []
    outcome = play(stage, tmp_path / "out", sites(visits, client_2=failing), workflow="cyclic", rounds=3, quorum=2)
    assert sorted(visits) == [(number, name) for number in (1, 2, 3) for name in ("client-1", "client-3")]
    assert np.array_equal(load(tmp_path / "out/model.safetensors")["w"], expected_after(visits))
    for record in outcome.history:
        assert sorted(record.updates) == ["client-1", "client-3"]
        assert list(record.failed["train"]) == ["client-2"]
        assert "this site fails" in record.failed["train"]["client-2"]
        assert sorted(record.sampled) == list(NAMES)


def failing_once(name: str, visits: list[tuple[int, str]]) -> Function:
    tried: list[int] = []

    def train(model: Arrays, task: Task) -> Update:
        if task.round not in tried:
            tried.append(task.round)
            raise ValueError("this site fails once in a tour")
        return stepping(name, visits)(model, task)

    return train


def test_below_the_quorum_a_site_that_was_left_out_is_asked_once_more(stage: Stage, tmp_path: Path) -> None:
    visits: list[tuple[int, str]] = []
    outcome = play(
        stage,
        tmp_path / "out",
        sites(visits, client_2=failing_once("client-2", visits)),
        workflow="cyclic",
        rounds=2,
        quorum=3,
    )
    assert [name for _, name in visits][2::3] == ["client-2", "client-2"], "at the end of the tour"
    assert np.array_equal(load(tmp_path / "out/model.safetensors")["w"], expected_after(visits))
    assert [sorted(record.updates) for record in outcome.history] == [list(NAMES)] * 2
    assert [record.failed for record in outcome.history] == [{}, {}]


def test_below_the_quorum_the_job_fails(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="this site fails"):
        play(stage, tmp_path / "out", sites(client_2=failing), workflow="cyclic", rounds=2, quorum=3)


@pytest.mark.parametrize("durability", ["disk", "memory"])
def test_a_tour_that_is_killed_goes_on_with_the_same_bits(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    shorten_grace(monkeypatch)
    out = tmp_path / "out"
    options: dict[str, Any] = {"workflow": "cyclic", "rounds": 3, "quorum": 2, "durability": durability}
    with monkeypatch.context() as patch:
        changes = kill_at_each_change(patch, out, tmp_path / "killed")
        expected = without_timing(play(stage, out, sites(client_2=failing), **options).history)
    assert changes.count("end_round") == 3
    assert any(record["sampled"][-1] == "client-2" for record in expected), "a tour that ends with the one that fails"
    all_visits = {(number, name) for number in (1, 2, 3) for name in ("client-1", "client-3")}
    for number in range(0, len(changes), 2):
        visits: list[tuple[int, str]] = []
        copy = tmp_path / "killed" / str(number)
        done = trained_in(copy)
        play(stage, copy, sites(visits, client_2=failing), **options)
        assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes(), number
        assert without_timing(read_history(copy)) == expected
        if durability == "disk":
            assert sorted(visits) == sorted(all_visits - done)
        else:
            assert len(visits) <= len(all_visits)


def trained_in(run: Path) -> set[tuple[int, str]]:
    """The rounds and sites whose update has a receipt, by the record of a run."""
    with RunState(run / "state.sqlite") as state:
        calls = state.calls()
        done = {(call.round, client) for call in calls if call.kind == "train" for client in call.result["clients"]}
        last = calls[-1].number if calls else 0
        # An answer of validation has no directory.
        under_way = {(state.last_round() + 1, each.client) for each in state.answers(last + 1) if each.directory}
    return done | under_way
