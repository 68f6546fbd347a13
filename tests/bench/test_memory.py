"""Servers keep to the formula of docs/memory.md, a fresh process each: few clients and many, large tensors and small.

Small in every run; `make stress` measures 400 clients, and half a gigabyte.
"""

import os

import pytest
from _pytest.mark import ParameterSet
from flcore_bench.case import Case
from flcore_bench.federated import measured
from flcore_bench.formula import bound
from flcore_bench.memory import MEMORY_CASES

SMALL = [case for case in MEMORY_CASES if "ten thousand tensors, many" not in case.name]

KNOWN = {
    "many clients": "many clients at once take more than the formula (RESULTS.md, 2026-11-25): not found yet why",
    "at close, ten thousand": "403 MB of 402.65 beside a fresh llvmlite, of whose file more is mapped",
}
"""Why a case may miss its bound, by words of its name."""


class Over(Exception):
    """A server took more memory than the formula says: the one thing that a known miss excuses."""


def cases(chosen: list[Case]) -> list[ParameterSet]:
    """Those that are known to miss their bound are measured all the same."""

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        known = [reason for words, reason in KNOWN.items() if words in case.name]
        return [pytest.mark.xfail(raises=Over, strict=False, reason=reason) for reason in known]

    return [pytest.param(case, id=case.name, marks=marks(case)) for case in chosen]


def require_bound(case: Case, scale: str) -> None:
    run = case.at(scale)
    figures = measured(run, threads=2)
    assert not figures.losses
    if figures.peak_bytes > bound(run):
        raise Over(f"{figures.peak_bytes / 1e6:.0f} MB, {bound(run) / 1e6:.0f} MB allowed")


@pytest.mark.parametrize("case", cases(SMALL))
def test_a_small_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "small")


@pytest.mark.stress
@pytest.mark.skipif("FLCORE_TEST_STRESS" not in os.environ, reason="takes minutes and gigabytes: make stress")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", cases(MEMORY_CASES))
def test_a_large_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "full")
