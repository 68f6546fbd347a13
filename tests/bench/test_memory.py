"""Servers keep to the formula of docs/memory.md, a fresh process each: few clients and many, large tensors and small.

Small in every run; `make stress` measures 400 clients, and half a gigabyte.
"""

import pytest
from flcore_bench.case import Case
from flcore_bench.federation import run_federation
from flcore_bench.memory import MEMORY_CASES, PLANS

SMALL = {
    *(
        f"{plan}, {load}"
        for plan in PLANS
        for load in ("one tensor, many clients", "ten thousand tensors, few clients")
    ),
    "streaming, exact, uploads that stall halfway",
}
"""Every plan with every shape and every number of clients, in pairs."""


def require_bound(case: Case, scale: str) -> None:
    run = case.at(scale)
    figures = run_federation(run, threads=2)
    assert not figures.failure_count or "stall" in case.name
    assert figures.peak_bytes <= run.memory_bound


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in MEMORY_CASES if case.name in SMALL], ids=lambda case: case.name)
def test_a_small_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "small")


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", MEMORY_CASES, ids=lambda case: case.name)
def test_a_large_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "full")


def test_the_small_servers_are_cases_of_the_bench() -> None:
    assert {case.name for case in MEMORY_CASES} > SMALL
