"""Rounds of real processes, at a size that measures nothing."""

import os
from pathlib import Path
from statistics import median

import pytest
from flcore_bench import processes
from flcore_bench.processes import SIDES, Side, process_rows, repetitions
from flcore_bench.rates import synced_write_s
from flcore_bench.report import Row
from flcore_bench.round import SIZES_MB

from tests.flcore.command import said


@pytest.mark.long
@pytest.mark.parametrize("side", [SIDES[0], SIDES[-1]], ids=lambda side: side.name)
def test_a_side_is_measured_with_fresh_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: Side) -> None:
    monkeypatch.setitem(SIZES_MB, "small", 2)
    monkeypatch.setitem(processes.ROUNDS, "small", 2)
    taken = processes.measure_rounds(tmp_path, "small", 2, side)
    assert len(taken) == 2 and all(0 < seconds < 60 for seconds in taken)
    is_kept = (tmp_path / "runs/echo/state.sqlite").exists()
    assert is_kept and (tmp_path / "certs").exists() == (side.transport == "mutual TLS")


def test_the_disk_alone_writes_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.fstat(file).st_size))
    assert synced_write_s(tmp_path, 5_000_000) > 0
    assert synced == [5_000_000] and not list(tmp_path.iterdir())


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The table where each side takes a time of its own, and the disk alone 3 s."""
    taken = {
        Side("plaintext", "memory"): 2.0,
        Side("plaintext", "disk"): 3.15,
        Side("mutual TLS", "memory"): 4.0,
        Side("mutual TLS", "disk"): 5.0,
    }
    monkeypatch.setattr(processes, "measure_rounds", lambda directory, scale, threads, side: [taken[side], taken[side]])
    monkeypatch.setattr(processes, "synced_write_s", lambda directory, size: 3.0)
    return process_rows("full", 2)


def test_each_side_is_compared_with_what_it_costs_more_than(rows: list[Row]) -> None:
    *sides, alone = rows
    plain, plain_disk, tls, tls_disk = sides
    assert [row.what.partition("clients, ")[2] for row in sides] == [side.name for side in SIDES]
    assert {row.bytes for row in sides} == {2 * alone.bytes} == {2 * 4 * 512_000_000}
    assert plain.against == {} and plain.goals == []
    assert plain_disk.against == {"memory": 3.15 / 2.0, "the disk alone": 3.15 / 3.0}
    assert tls.against == {"plaintext": 2.0}
    assert tls_disk.against == {"plaintext": 5.0 / 3.15, "memory": 5.0 / 4.0, "the disk alone": 5.0 / 3.0}
    assert median(alone.seconds) == 3.0
    assert plain_disk.note.startswith("+0.15 s beyond") and tls_disk.note.startswith("+1.00 s beyond")


def test_the_goals_are_those_of_the_full_scale(rows: list[Row]) -> None:
    plain_disk, tls, tls_disk = [goal for row in rows for goal in row.goals]
    assert plain_disk.value == pytest.approx(1.05)
    assert plain_disk.bound == 1.10 and plain_disk.is_met
    assert (tls.value, tls.bound, tls.is_met) == (2.0, 1.35, False)
    assert (tls_disk.value, tls_disk.is_met) == (1.25, False)


@pytest.mark.parametrize(("minutes", "expected"), [(None, 3), (0.0, 1), (1.0, 3), (1.2, 3), (1.4, 4)])
def test_sides_are_repeated_while_another_time_fits(minutes: float | None, expected: int) -> None:
    elapsed, numbers = [0.0], []
    for number in repetitions(3, minutes, now=lambda: elapsed[0]):
        numbers.append(number)
        elapsed[0] += 20.0
    assert numbers == list(range(1, expected + 1))


def test_minutes_are_for_processes_alone(tmp_path: Path) -> None:
    assert "processes alone takes it" in said("bench", "kernels", "--minutes", "1", cwd=tmp_path, code=2)
