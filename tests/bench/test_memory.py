"""Servers keep to the formula of docs/memory.md, a fresh process each: few clients and many, large tensors and small.

Small in every run; `make stress` measures 400 clients, and half a gigabyte.
"""

import os

import pytest
from flcore_bench.case import Case
from flcore_bench.federated import measured
from flcore_bench.formula import bound
from flcore_bench.memory import MEMORY_CASES

LONG = ("ten thousand tensors, many", "at close, uploads that stall")
SMALL = [case for case in MEMORY_CASES if not any(words in case.name for words in LONG)]


def require_bound(case: Case, scale: str) -> None:
    run = case.at(scale)
    figures = measured(run, threads=2)
    assert not figures.losses or "stall" in case.name
    assert figures.peak_bytes <= bound(run)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_small_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "small")


@pytest.mark.stress
@pytest.mark.skipif("FLCORE_TEST_STRESS" not in os.environ, reason="takes minutes and gigabytes: make stress")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", MEMORY_CASES, ids=lambda case: case.name)
def test_a_large_server_keeps_to_the_formula(case: Case) -> None:
    require_bound(case, "full")
