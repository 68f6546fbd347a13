"""The transport benchmark, at a size that measures nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from flcore_bench.timing import interleaved_samples
from flcore_bench.transport import measured_rows
from flcore_bench.transport_tuning import Tuning

MB = 10**6
ROOT = Path(__file__).parents[2]


def test_every_stream_is_measured_and_held_against_bare_ones() -> None:
    rows = measured_rows(5 * MB, 2, Tuning(), 2)
    assert [row.what.rpartition(", ")[0] for row in rows] == [
        "upload, bare, acknowledged",
        "upload, bare",
        "upload, flcore, checked",
        "upload, flcore, checked and folded, float32",
        "upload, flcore, checked and folded, exact",
        "download, bare",
        "download, flcore, checked",
    ]
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 and row.bytes > 4.9 * MB for row in rows)
    assert [len(row.goals) for row in rows] == [0, 0, 2, 2, 2, 0, 1]
    assert all(goal.bound == 0.85 and goal.is_at_least for row in rows for goal in row.goals)
    bare, ours = rows[1], rows[2]
    assert ours.against["bare"] == pytest.approx(bare.median_s / ours.median_s)


def test_pieces_window_and_connections_can_be_varied() -> None:
    command = [sys.executable, str(ROOT / "bench/transport_trial.py"), "--size", "3", "--rounds", "1"]
    varied = ["--piece", str(1 << 19), "--window", "2", "--connections", "2"]
    printed = subprocess.run([*command, *varied], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert len(printed.splitlines()) == 7
    assert all("in 0.5 MiB pieces over 2 connections" in line for line in printed.splitlines())


@pytest.mark.parametrize("piece", [1_000, 4 << 20])
def test_a_piece_that_cannot_be_is_refused(piece: int) -> None:
    with pytest.raises(ValueError, match="a piece has"):
        Tuning(piece=piece).apply()


def test_streams_take_turns() -> None:
    seen: list[str] = []

    def sample(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    taken = interleaved_samples({"a": lambda: sample("a"), "b": lambda: sample("b")}, 2)
    assert seen == ["a", "b", "a", "b", "b", "a"]
    assert taken == {"a": [3.0, 6.0], "b": [4.0, 5.0]}
