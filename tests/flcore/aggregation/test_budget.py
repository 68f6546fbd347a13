"""The budget: what people write, how it is shared out, and the formula for a server's memory."""

from pathlib import Path

import numpy as np
import pytest
from flcore_transport import CONNECTION_BYTES, MAX_CONNECTIONS, UNAUTHENTICATED_BYTES

from flcore import BudgetError, ModelSpec
from flcore.aggregation.budget import DATABASE_BYTES, PROCESS_BYTES, Budget, memory_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("1GiB", 1 << 30), ("512MiB", 512 * MIB), ("2 GB", 2_000_000_000), ("0.5GiB", 512 * MIB), ("67108864B", 64 * MIB)],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert Budget.parse(text).nbytes == nbytes


@pytest.mark.parametrize("text", ["", "1", "GiB", "1 gib", "-1GiB", "1e3MiB", "1GiB more", "1iB", "nanGiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="a number and a unit, such as 512MiB"):
        Budget.parse(text)


def test_a_budget_too_small_for_any_job_says_which_would_do() -> None:
    with pytest.raises(BudgetError, match="64MiB would do"):
        Budget.parse("63MiB")
    Budget.parse("64MiB")


def test_the_shares_are_within_the_whole() -> None:
    for nbytes in (64 * MIB, 1_000_000_007, 1 << 40):
        budget = Budget(nbytes)
        shares = budget.in_flight_bytes + budget.working_bytes + budget.staging_bytes
        assert 0.7 * nbytes <= shares < nbytes


@pytest.mark.parametrize(("accumulate", "of_total"), [("float32", 4), ("float64", 8), ("exact", 16 + 1 / 32)])
def test_the_formula_of_the_docs(accumulate: str, of_total: float) -> None:
    spec = ModelSpec.of({"w": np.zeros(1 << 20, np.float32)})
    budget = Budget.parse("64MiB")
    assert budget.peak_bytes("batch", spec, accumulate) == (64 + 416) * MIB
    assert budget.peak_bytes("streaming", spec, accumulate) == int((2 * 4 + of_total) * MIB) + (64 + 416) * MIB


def test_a_server_that_would_not_fit_says_what_would_do() -> None:
    spec = ModelSpec.of({"w": np.zeros(100 * MIB // 4, np.float32)})
    budget = Budget.parse("256MiB")
    budget.require("streaming", spec, "float32", (256 + 300 + 416) * MIB)
    with pytest.raises(
        BudgetError, match="takes up to 972MiB of memory, and there are 796MiB; a budget of 80MiB would"
    ) as e:
        budget.require("streaming", spec, "float32", 796 * MIB)
    assert str(e.value).endswith("would do, or the plan batch with a budget of 256MiB would do")
    with pytest.raises(BudgetError, match="there are 496MiB; the plan batch with a budget of 80MiB would do"):
        budget.require("streaming", spec, "exact", 496 * MIB)
    with pytest.raises(BudgetError, match=r"there are 436MiB$"):
        budget.require("batch", spec, "exact", 436 * MIB)
    Budget.parse("80MiB").require("batch", spec, "exact", 496 * MIB)


def test_a_job_with_more_clients_than_connections_says_how_many_would_do() -> None:
    Budget(64 * MIB).require_connections(1024)
    with pytest.raises(BudgetError, match=r"1,025 clients need .* takes 1,024; start it with --connections 2050"):
        Budget(64 * MIB).require_connections(1025)
    Budget(64 * MIB, connections=2050).require_connections(1025)


def test_a_plan_that_does_not_exist_has_no_formula() -> None:
    with pytest.raises(BudgetError, match="plan 'at_close' does not exist; expected batch or streaming"):
        Budget.parse("64MiB").peak_bytes("at_close", ModelSpec.of({"w": np.zeros(3)}), "exact")


def test_memory_is_what_the_control_groups_allow(tmp_path: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    machine = memory_bytes(groups, own)
    assert machine > 1 << 28
    (groups / "job" / "server").mkdir(parents=True)
    own.write_text("0::/job/server\n")
    assert memory_bytes(groups, own) == machine
    (groups / "job" / "server" / "memory.max").write_text("max\n")
    (groups / "job" / "memory.max").write_text("1000000\n")
    assert memory_bytes(groups, own) == 1_000_000
    (groups / "memory" / "old").mkdir(parents=True)
    (groups / "memory" / "old" / "memory.limit_in_bytes").write_text("2000000\n")
    own.write_text("3:cpu:/\n2:memory:/old\n")
    assert memory_bytes(groups, own) == 2_000_000


def test_what_connections_hold_is_in_the_formula() -> None:
    assert UNAUTHENTICATED_BYTES == 32 * MIB
    assert MAX_CONNECTIONS * CONNECTION_BYTES == 96 * MIB
    overhead = Budget.parse("64MiB").overhead_bytes
    assert overhead == PROCESS_BYTES + DATABASE_BYTES + (32 + 96) * MIB == 416 * MIB
    spec = ModelSpec.of({"w": np.zeros(3)})
    more = Budget(64 * MIB, connections=10 * MAX_CONNECTIONS)
    assert more.peak_bytes("batch", spec, "exact") == (64 + 416 + 9 * 96) * MIB
