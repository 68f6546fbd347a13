"""Rounds of synthetic clients, at sizes that measure nothing: what the instruments say is what happened."""

import tempfile
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flcore_bench import MeasurementFailed, Row
from flcore_bench import run as bench_run
from flcore_bench.case import Case, Measured, rows_of
from flcore_bench.confinement import confinement
from flcore_bench.disk import DiskWatch, disk_rates, held_bytes
from flcore_bench.federated import Federated, Figures, measured
from flcore_bench.formula import bound
from flcore_bench.memory import MEMORY_CASES
from flcore_bench.process import Process
from flcore_bench.rates import Rates
from flcore_bench.round_cases import ROUND_CASES
from flcore_bench.wanted import (
    checks,
    idle,
    nobody_lost,
    on_disk,
    over_floor,
    reached,
    resident,
    throughput_of,
    times_as_fast,
    under_formula,
)

MB = 10**6


@pytest.mark.serial
def test_a_streaming_round_is_measured() -> None:
    run = Federated("flat", 2 * MB, clients=5, rounds=3, options={"plan": "streaming"})
    figures = measured(run, 2)
    assert len(figures.seconds) == 2 and min(figures.seconds) > 0
    assert {"train", "aggregate", "keep", "round"} <= set(figures.phases)
    assert figures.bytes_sent == pytest.approx(5 * 2 * MB, rel=0.01)
    assert figures.bytes_received == pytest.approx(5 * 2 * MB, rel=0.01)
    assert 30 * MB < figures.idle_bytes <= figures.peak_bytes < 1_000 * MB
    assert figures.losses == 0 and figures.disk_bytes == 0
    assert all(0 < seconds < 5 for seconds in figures.reached_s)


@pytest.mark.serial
def test_a_round_on_disk_in_a_confined_process_says_what_it_held_there() -> None:
    options = {"plan": "at-close", "budget_bytes": 64 << 20}
    figures = measured(
        Federated("many", 4 * MB, clients=2, rounds=2, options=options, on_disk=True, memory_limit=600 * MB), 2
    )
    assert figures.disk_bytes >= 4 * MB


@pytest.mark.serial
def test_clients_wait_where_the_contract_says_so() -> None:
    pause = {"tasks": {"train": {"hyperparameters": {"pause_s": 0.5}}}}
    figures = measured(Federated("flat", 1024, clients=20, rounds=1, contract=pause), 2)
    assert figures.seconds[0] > 0.5 > figures.reached_s[0]


def test_a_client_that_cannot_go_on_ends_the_measurement() -> None:
    job = {"directory": "nowhere", "contract": {}, "address": "localhost:1", "names": ["a"]}
    with Process("flcore_bench.synthetic_clients", job, 1) as process, pytest.raises(MeasurementFailed, match="ended"):
        process.answer()


def test_a_confined_process_is_in_the_group(tmp_path: Path) -> None:
    with confinement(0) as none:
        assert none is None
    with confinement(500 * MB) as group:
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
        assert 3 * MB <= held_bytes(tmp_path) < 3.1 * MB
        seen = threading.Event()
        while watch.high_water < 3 * MB:
            assert not seen.wait(0.01)
    assert held_bytes(tmp_path) == (tmp_path / "named").stat().st_blocks * 512
    rates = disk_rates(tmp_path, 4 * MB)
    assert rates.read > 0 and rates.write > 0


def test_the_formula_is_the_issue_s() -> None:
    gib = 1 << 30
    streaming = {"plan": "streaming", "budget_bytes": gib}
    at_close = {"plan": "at-close", "budget_bytes": gib}
    assert bound(Federated("flat", 512 * MB, accumulate="float32", options=streaming)) < 3.0e9
    assert 4.4e9 < bound(Federated("flat", 512 * MB, options=streaming)) < 4.5e9
    assert bound(Federated("flat", 512 * MB, options=at_close)) < 1.45e9


def figures(**changes: Any) -> Figures:
    fields: dict[str, Any] = {
        "seconds": [2.0, 1.0, 4.0],
        "phases": {"train": [1.0], "round": [2.0]},
        "bytes_sent": 400 * MB,
        "bytes_received": 400 * MB,
        "peak_bytes": 700 * MB,
        "idle_bytes": 200 * MB,
        "disk_bytes": 600 * MB,
        "reached_s": [0.5, 1.5],
        "failed": {"it fell": 1},
        "refused": {"untimely": 2},
    }
    return Figures(**fields | changes)


def test_goals_are_computed_from_figures() -> None:
    run = Federated("flat", 100 * MB, options={"plan": "at-close", "budget_bytes": 100 << 20})
    found = Measured(run, figures(), check_rate=4e9, rates=Rates(up=1e9, down=2e9, write=1e9, read=4e9))
    book = {"other": Measured(run, figures(seconds=[3.0]), 1.0)}
    # Moved up 0.4 s and down 0.2 s, written 0.4 s, read 0.1 s, the result 0.1 s.
    values = {
        resident(1e9): 0.7,
        idle(300e6): 200,
        under_formula(): 0.7,
        on_disk(7): 6,
        over_floor(1.3): 2 / 1.2,
        checks(0.1): 0.05,
        nobody_lost(): 3,
        reached(2.0): 1.5,
        throughput_of("other", 0.7): 1.5,
        times_as_fast("other", 1.6): 1.5,
    }
    assert {wanted: wanted(found, book).value for wanted in values} == pytest.approx(values, rel=1e-4)
    met = [wanted(found, book).is_met for wanted in values]
    assert met == [True, True, False, True, False, True, False, True, True, False]


@pytest.mark.parametrize("cases", [ROUND_CASES, MEMORY_CASES])
def test_cases_are_held_against_earlier_ones_only(cases: list[Case]) -> None:
    book: dict[str, Measured] = {}
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        run = case.at("full")
        found = book[case.name] = Measured(run, figures(), 1e9, Rates(1e9, 1e9, 1e9, 1e9))
        for wanted in case.wanted:
            assert wanted(found, book).what
        assert case.at("small").model_bytes <= 100 * MB, "a small run is for laptops"


def test_a_rated_case_has_the_machine_s_own_figures_beside_it() -> None:
    case = Case(
        "tiny",
        (1 * MB, 1),
        clients=(2, 2),
        rounds=(2, 2),
        on_disk=True,
        is_rated=True,
        wanted=[over_floor(1.3), nobody_lost()],
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
