"""Every section of `flcore bench kernels` and `flcore bench rules`, at a size that measures nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flcore_bench import Row, Sizes, kernels
from flcore_bench.aggregate_calls import flat_mean_rows, many_tensor_rows
from flcore_bench.kernel_means import exact_rows, grid_rows, narrow_dtype_rows
from flcore_bench.process import run_in_process
from flcore_bench.rules import distance_rows, many_rows, narrow_rows, order_rows, whole_rule_rows
from flcore_bench.workload import format_count

from tests.bench.tiny_kernels import TINY
from tests.flcore.command import said

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("section", "goals"),
    [
        (flat_mean_rows, 3),
        (narrow_dtype_rows, 6),
        (exact_rows, 3),
        (many_tensor_rows, 2),
        (grid_rows, 1),
        (order_rows, 16),
        (narrow_rows, 2),
        (many_rows, 3),
        (distance_rows, 0),
        (whole_rule_rows, 6),
    ],
)
def test_a_section_measures_its_rows(section: Callable[[Sizes], list[Row]], goals: int) -> None:
    rows = section(TINY)
    assert len({row.what for row in rows}) >= len(rows) - 2, "the same float32 row stands beside each narrow dtype"
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert sum(len(row.goals) for row in rows) == goals
    assert all(row == Row.from_json(row.to_json()) for row in rows)


def test_a_full_run_is_the_issue_s() -> None:
    full = Sizes.of("full", 2)
    assert (format_count(full.elements), full.tensors, full.rounds) == ("67.1 M", 10_000, 7)
    assert full.grid_clients == (10, 50, 100, 200)
    assert [format_count(elements) for elements in full.grid_elements] == ["0.1 M", "1.0 M", "10.0 M"]


@pytest.mark.long
def test_the_command_measures_all_sections_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def run_tiny(module: str, scale: str, *, threads: int) -> Any:
        assert (module, scale) == ("flcore_bench.kernels", "small")
        return run_in_process("tests.bench.tiny_kernels", scale, threads=threads, environment={"PYTHONPATH": path})

    monkeypatch.setattr(kernels, "run_in_process", run_tiny)
    printed = said("bench", "kernels", "--json", "figures.json", cwd=tmp_path)
    assert "aggregate, float32, out=" in printed and "of limit" in printed and "Not a full run" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["cores"] >= 1
    row = next(row for row in figures["rows"] if row["what"].startswith("aggregate, float32, out="))
    assert row["of_limit"] > 0, "at full scale, a mean that beats the limit is an error of the run"
    started = {row["what"] for row in figures["rows"]} & {"import flcore_kernels", "import flcore"}
    assert len(started) == 2
