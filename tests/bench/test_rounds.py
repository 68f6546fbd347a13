"""Rounds of synthetic clients, at sizes that measure nothing: what the instruments say is what happened."""

import tempfile
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flcore_bench import MeasurementFailed, Row
from flcore_bench import run as bench_run
from flcore_bench.case import Case, CaseResult, rows_of
from flcore_bench.federation import FederationSpec, Figures, run_federation
from flcore_bench.goals import (
    check_share,
    disk_usage,
    idle_memory,
    no_failures,
    over_hardware_floor,
    peak_memory,
    relative_throughput,
    speedup_over,
    task_delivery,
    within_memory_bound,
)
from flcore_bench.memory import MEMORY_CASES
from flcore_bench.process import ChildProcess
from flcore_bench.rates import Rates, disk_rates
from flcore_bench.resources import DiskWatch, cgroup_limit, disk_usage_bytes
from flcore_bench.round import ROUND_CASES

MB = 10**6


@pytest.mark.serial
def test_a_streaming_round_is_measured() -> None:
    run = FederationSpec("flat", 2 * MB, clients=5, rounds=3, options={"plan": "streaming"})
    figures = run_federation(run, 2)
    assert len(figures.seconds) == 2 and min(figures.seconds) > 0
    assert {"train", "aggregate", "keep", "round"} <= set(figures.phases)
    assert figures.bytes_sent == pytest.approx(5 * 2 * MB, rel=0.01)
    assert figures.bytes_received == pytest.approx(5 * 2 * MB, rel=0.01)
    assert 30 * MB < figures.idle_bytes <= figures.peak_bytes < 1_000 * MB
    assert figures.failure_count == 0 and figures.disk_bytes == 0
    assert all(0 < seconds < 5 for seconds in figures.delivery_s)


@pytest.mark.serial
def test_a_round_on_disk_in_a_confined_process_says_what_it_held_there() -> None:
    options = {"plan": "batch", "budget_bytes": 64 << 20}
    figures = run_federation(
        FederationSpec("many", 4 * MB, clients=2, rounds=2, options=options, on_disk=True, memory_limit_bytes=600 * MB),
        2,
    )
    assert figures.disk_bytes >= 4 * MB


@pytest.mark.serial
def test_clients_wait_where_the_contract_says_so() -> None:
    pause = {"tasks": {"train": {"hyperparameters": {"pause_s": 0.5}}}}
    figures = run_federation(FederationSpec("flat", 1024, clients=20, rounds=1, contract=pause), 2)
    assert figures.seconds[0] > 0.5 > figures.delivery_s[0]


def test_a_client_that_cannot_go_on_ends_the_measurement() -> None:
    job = {"directory": "nowhere", "contract": {}, "address": "localhost:1", "names": ["a"]}
    with (
        ChildProcess("flcore_bench.synthetic_clients", job, 1) as process,
        pytest.raises(MeasurementFailed, match="ended"),
    ):
        process.receive()


def test_a_confined_process_is_in_the_group(tmp_path: Path) -> None:
    with cgroup_limit(0) as none:
        assert none is None
    with cgroup_limit(500 * MB) as group:
        if group is None:
            pytest.skip("no cgroup can be made here")
        assert group.exists()
        assert any((group.parent / name).is_file() for name in ("memory.limit_in_bytes", "memory.max"))
    assert not group.parent.exists()


@pytest.mark.serial
def test_deleted_files_count_while_they_are_open(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file, DiskWatch(tmp_path) as watch:
        file.write(bytes(MB))
        file.flush()
        (tmp_path / "named").write_bytes(bytes(2 * MB))
        assert 3 * MB <= disk_usage_bytes(tmp_path) < 3.1 * MB
        seen = threading.Event()
        while watch.peak_bytes < 3 * MB:
            assert not seen.wait(0.01)
    assert disk_usage_bytes(tmp_path) == (tmp_path / "named").stat().st_blocks * 512
    rates = disk_rates(tmp_path, 4 * MB)
    assert rates.read > 0 and rates.write > 0


def test_the_formula_is_the_issue_s() -> None:
    gib = 1 << 30
    streaming = {"plan": "streaming", "budget_bytes": gib}
    at_close = {"plan": "batch", "budget_bytes": gib}
    assert FederationSpec("flat", 512 * MB, accumulate="float32", options=streaming).memory_bound < 3.1e9
    assert 4.5e9 < FederationSpec("flat", 512 * MB, options=streaming).memory_bound < 4.6e9
    assert FederationSpec("flat", 512 * MB, options=at_close).memory_bound < 1.55e9


def figures(**changes: Any) -> Figures:
    fields: dict[str, Any] = {
        "seconds": [2.0, 1.0, 4.0],
        "phases": {"train": [1.0], "round": [2.0]},
        "bytes_sent": 400 * MB,
        "bytes_received": 400 * MB,
        "peak_bytes": 700 * MB,
        "idle_bytes": 200 * MB,
        "disk_bytes": 600 * MB,
        "delivery_s": [0.5, 1.5],
        "failed": {"it fell": 1},
        "refused": {"untimely": 2},
    }
    return Figures(**fields | changes)


def test_goals_are_computed_from_figures() -> None:
    run = FederationSpec("flat", 100 * MB, options={"plan": "batch", "budget_bytes": 100 << 20})
    found = CaseResult(run, figures(), check_rate=4e9, rates=Rates(up=1e9, down=2e9, write=1e9, read=4e9))
    results = {"other": CaseResult(run, figures(seconds=[3.0]), 1.0)}
    # Moved up 0.4 s and down 0.2 s, written 0.4 s, read 0.1 s, the result 0.1 s.
    values = {
        peak_memory(1e9): 0.7,
        idle_memory(300e6): 200,
        within_memory_bound(): 0.7,
        disk_usage(7): 6,
        over_hardware_floor(1.3): 2 / 1.2,
        check_share(0.1): 0.05,
        no_failures(): 3,
        task_delivery(2.0): 1.5,
        relative_throughput("other", 0.7): 1.5,
        speedup_over("other", 1.6): 1.5,
    }
    assert {rule: rule(found, results).value for rule in values} == pytest.approx(values, rel=1e-4)
    met = [rule(found, results).is_met for rule in values]
    assert met == [True, True, False, True, False, True, False, True, True, False]


@pytest.mark.parametrize("cases", [ROUND_CASES, MEMORY_CASES])
def test_cases_are_held_against_earlier_ones_only(cases: list[Case]) -> None:
    results: dict[str, CaseResult] = {}
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        run = case.at("full")
        found = results[case.name] = CaseResult(run, figures(), 1e9, Rates(1e9, 1e9, 1e9, 1e9))
        for rule in case.goals:
            assert rule(found, results).what
        assert case.at("small").model_bytes <= 100 * MB, "a small run is for laptops"


def test_a_rated_case_has_the_machine_s_own_figures_beside_it() -> None:
    case = Case(
        "tiny",
        (1 * MB, 1),
        clients=(2, 2),
        rounds=(2, 2),
        on_disk=True,
        is_rated=True,
        goals=[over_hardware_floor(1.3), no_failures()],
        note="first",
    )
    row, floor = rows_of([case], "small", 2)
    assert [goal.what for goal in row.goals] == ["of its floor", "failed or refused"]
    assert row.goals[0].value == pytest.approx(row.median_s / floor.median_s)
    assert row.note.startswith("first; peak ") and "train" in row.note and "disk" in row.note
    assert "up" in floor.note and "written" in floor.note
    assert row == Row.from_json(row.to_json())


@pytest.mark.parametrize("what", ["transport", "round", "memory"])
def test_each_of_them_is_a_report(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def rows(scale: str, threads: int) -> list[Row]:
        asked.append((scale, threads))
        return [Row("measured", [1.0, 2.0], 10)]

    monkeypatch.setattr(import_module("flcore_bench.run"), f"{what}_rows", rows)
    assert bench_run(what, "small", threads=2).rounds == 2
    assert asked == [("small", 2)] and "measured" in capsys.readouterr().out
