"""Federated statistics against NumPy on all values in one place, with missing and wrong sites, and kills."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, JobError, QuorumError, Task, Update
from flcore.statistics import site_statistics
from tests.flcore.conftest import Function, Stage
from tests.flcore.workflows.staged import NAMES, failing, kill_at_each_change, play, results_of, shorten_grace

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)

MIN_COUNT, ERROR = 5, 0.02
EDGES = [0.0, 20.0, 40.0, 80.0]
QUANTILES = [0.0, 0.1, 0.5, 0.9, 1.0]


def columns_of(name: str) -> dict[str, Any]:
    """Three sites of different sizes. The mean of `far` is large beside its deviation. Two sites have `rare`."""
    draw = np.random.default_rng(NAMES.index(name))
    n = {"client-1": 400, "client-2": 37, "client-3": 2_000}[name]
    columns = {
        "age": draw.normal(45, 22, n).round(),
        "far": 1e9 + draw.normal(0, 1e-3, n),
        "wide": draw.choice([-1.0, 1.0], n) * 10 ** draw.uniform(-20, 20, n),
    }
    if name == "client-2":
        columns["rare"] = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    if name == "client-1":
        columns["rare"] = np.array([1e6, 2e6])  # below the smallest count
    return columns


def describing(name: str, asked: list[str] | None = None) -> Function:
    def statistics(_: Arrays, task: Task) -> Update:
        if asked is not None:
            asked.append(name)
        return site_statistics(columns_of(name), task)

    return statistics


def run(stage: Stage, out: Path, asked: list[str] | None = None, **replaced: Function) -> dict[str, Any]:
    """Run the job and return its results."""
    functions = {name: describing(name, asked) for name in NAMES} | {
        name.replace("_", "-"): function for name, function in replaced.items()
    }
    play(stage, out, {name: {"statistics": each} for name, each in functions.items()}, **OPTIONS)
    return results_of(out)


TASKS = {"statistics": "metrics"}
OPTIONS: dict[str, Any] = {
    "workflow": "federated_statistics",
    "model": "flcore.statistics:no_model",
    "bounds": {"max_metrics": 10_000},
    "tasks": TASKS,
    "hyperparameters": {
        "min_count": MIN_COUNT,
        "relative_error": ERROR,
        "quantiles": QUANTILES,
        "bins": {"age": EDGES},
    },
}


def together(column: str, sites: tuple[str, ...] = NAMES) -> Any:
    return np.concatenate([columns_of(name)[column] for name in sites])


@pytest.mark.parametrize("column", ["age", "far", "wide"])
def test_statistics_are_those_of_all_values_in_one_place(stage: Stage, tmp_path: Path, column: str) -> None:
    results = run(stage, tmp_path / "out")
    values, found = together(column), results["columns"][column]
    assert (results["sites"], results["missing"], results["refused"]) == (list(NAMES), [], {})
    assert (found["sites"], found["count"]) == (3, len(values))
    scale = np.abs(values).max()
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12, abs=scale * 1e-15)
    deviation = np.sqrt(found["variance"])
    assert deviation == pytest.approx(values.std(), rel=1e-6), "no large squares are subtracted"
    moved, ordered = 3 * (MIN_COUNT - 1), np.sort(values)
    estimates = {0.0: found["minimum"], 1.0: found["maximum"]} | {
        float(q): estimate for q, estimate in found["quantiles"].items()
    }
    assert sorted(estimates) == QUANTILES
    for q, estimate in estimates.items():
        rank = int(q * (len(values) - 1))
        near = ordered[max(0, rank - moved) : rank + moved + 1]
        assert (np.abs(near - estimate) <= ERROR * np.abs(near) * (1 + 1e-9)).any(), (q, estimate)


def test_a_histogram_has_all_values_but_those_of_small_bins(stage: Stage, tmp_path: Path) -> None:
    found = run(stage, tmp_path / "out")["columns"]["age"]["histogram"]
    limits = [-np.inf, *EDGES, np.inf]
    exact = [
        [int(((values >= low) & (values < high)).sum()) for low, high in pairwise(limits)]
        for values in (columns_of(name)["age"] for name in NAMES)
    ]
    assert any(0 < count < MIN_COUNT for site in exact for count in site), "a bin of a site is small"
    assert found["edges"] == EDGES
    assert all(count <= sum(site[number] for site in exact) for number, count in enumerate(found["counts"]))
    assert sum(found["counts"]) + found["suppressed"] == len(together("age"))
    large = [sum(site[number] for site in exact if site[number] >= MIN_COUNT) for number in range(5)]
    assert found["suppressed"] >= MIN_COUNT
    assert all(count <= most for count, most in zip(found["counts"], large, strict=True))
    assert found["counts"][1] == large[1] and found["counts"][2] == large[2], "large bins are complete"


def test_a_column_that_is_small_at_a_site_is_of_the_others(stage: Stage, tmp_path: Path) -> None:
    found = run(stage, tmp_path / "out")["columns"]["rare"]
    assert (found["sites"], found["count"], found["mean"]) == (1, 5, 3.0)
    assert found["variance"] == pytest.approx(2.0)
    assert found["maximum"] < 6, "what the other site has is not in it"


def test_sites_that_fail_or_send_no_statistics_are_left_out(stage: Stage, tmp_path: Path) -> None:
    def wrong(_: Arrays, task: Task) -> Update:
        return Update(weight=1.0, metrics={"count:age": 2.0, "mean:age": 1.0})

    results = run(stage, tmp_path / "out", client_1=failing, client_2=wrong)
    assert results["sites"] == ["client-3"]
    assert results["missing"] == ["client-1"]
    assert list(results["refused"]) == ["client-2"]
    assert "at least min_count = 5, got 2" in results["refused"]["client-2"]
    assert results["columns"]["age"]["mean"] == pytest.approx(columns_of("client-3")["age"].mean())


def test_without_any_site_the_job_fails_and_says_who_is_missing(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"tasks\.statistics: expected the answer of one site or more, got none"):
        run(stage, tmp_path / "out", client_1=failing, client_2=failing, client_3=failing)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["columns"], results["missing"]) == ({}, list(NAMES))


def test_the_history_has_no_metrics_of_it(stage: Stage, tmp_path: Path) -> None:
    run(stage, tmp_path / "out")
    (record,) = stage.result().history
    assert (record.train, record.validate, record.updates) == ({}, {}, {})


def test_a_job_without_the_task_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"needs tasks\.statistics with returns = 'metrics', got no such task"):
        play(stage, tmp_path / "out", {}, **(OPTIONS | {"tasks": {"validate": "metrics"}}))


def test_results_are_the_same_after_a_kill_at_any_change_of_the_record(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_grace(monkeypatch)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        changes = kill_at_each_change(patch, out, tmp_path / "killed")
        run(stage, out, client_2=failing)
    assert changes == ["end_call", "add_answer", "add_answer", "end_call", "end_call", "end_round"]
    for number in range(len(changes)):
        copy, asked = tmp_path / "killed" / str(number), list[str]()
        run(stage, copy, asked, client_2=failing)
        assert (copy / "results.json").read_bytes() == (out / "results.json").read_bytes()
        assert len(asked) == (2, 1, 0, 0, 0, 0)[number], "an answer with a receipt is not asked for again"
