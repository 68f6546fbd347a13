"""Every section of `flcore bench kernels`, at a size that measures nothing."""

from collections.abc import Callable

import pytest
from flcore_bench import Row, Setup
from flcore_bench.exact_sums import exact_rows
from flcore_bench.flat_mean import flat_mean_rows
from flcore_bench.grid import grid_rows
from flcore_bench.many_tensors import many_tensor_rows
from flcore_bench.narrow_dtypes import narrow_dtype_rows
from flcore_bench.setup import count_of

TINY = Setup("small", 2, 2, 1 << 14, 20, (2, 5), (1_000, 5_000), 1)


@pytest.mark.parametrize(
    ("section", "goals"),
    [(flat_mean_rows, 3), (narrow_dtype_rows, 6), (exact_rows, 3), (many_tensor_rows, 2), (grid_rows, 1)],
)
def test_a_section_measures_its_rows(section: Callable[[Setup], list[Row]], goals: int) -> None:
    rows = section(TINY)
    assert len({row.what for row in rows}) >= len(rows) - 2, "the same float32 row stands beside each narrow dtype"
    assert all(len(row.seconds) == 2 and min(row.seconds) > 0 for row in rows)
    assert sum(len(row.goals) for row in rows) == goals
    assert all(row == Row.from_json(row.to_json()) for row in rows)


def test_a_full_run_is_the_issue_s() -> None:
    full = Setup.of("full", 2)
    assert (count_of(full.elements), full.tensors, full.rounds) == ("67.1 M", 10_000, 7)
    assert full.grid_clients == (10, 50, 100, 200)
    assert [count_of(elements) for elements in full.grid_elements] == ["0.1 M", "1.0 M", "10.0 M"]
