"""The budget: what people write, how it is shared out, and the formula for a server's memory."""

import numpy as np
import pytest

from flcore import BudgetError, ModelSpec
from flcore.aggregation.budget import Budget

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1GiB", 1 << 30), ("512MiB", 512 * MIB), ("2 GB", 2_000_000_000), ("0.5GiB", 512 * MIB), ("33554432B", 32 * MIB)],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert Budget.parse(text).nbytes == nbytes


@pytest.mark.parametrize("text", ["", "1", "GiB", "1 gib", "-1GiB", "1e3MiB", "1GiB more", "1iB", "nanGiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="a number and a unit, such as 512MiB"):
        Budget.parse(text)


def test_a_budget_too_small_for_any_job_says_which_would_do() -> None:
    with pytest.raises(BudgetError, match="32MiB would do"):
        Budget.parse("31MiB")
    Budget.parse("32MiB")


def test_the_shares_make_the_whole() -> None:
    budget = Budget(1_000_000_007)
    assert budget.windows_bytes + budget.working_bytes + budget.staging_bytes == budget.nbytes


@pytest.mark.parametrize(("accumulate", "of_total"), [("float32", 4), ("float64", 8), ("exact", 16 + 1 / 32)])
def test_the_formula_of_the_docs(accumulate: str, of_total: float) -> None:
    spec = ModelSpec.of({"w": np.zeros(1 << 20, np.float32)})
    budget = Budget.parse("64MiB")
    assert budget.peak_bytes("at-close", spec, accumulate) == (64 + 320) * MIB
    assert budget.peak_bytes("streaming", spec, accumulate) == int((2 * 4 + of_total) * MIB) + (64 + 320) * MIB
