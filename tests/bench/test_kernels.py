"""Every section of `flcore bench kernels`, at a size that measures nothing."""

from collections.abc import Callable

import pytest
from flcore_bench import Row, Sizes
from flcore_bench.aggregate_calls import flat_mean_rows, many_tensor_rows
from flcore_bench.kernel_means import exact_rows, grid_rows, narrow_dtype_rows
from flcore_bench.workload import format_count

TINY = Sizes("small", 2, 2, 1 << 14, 20, (2, 5), (1_000, 5_000), 1)


@pytest.mark.parametrize(
    ("section", "goals"),
    [(flat_mean_rows, 3), (narrow_dtype_rows, 6), (exact_rows, 3), (many_tensor_rows, 2), (grid_rows, 1)],
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
