"""Chunk plans: within the budget, cut where no block is cut, or refused with what is needed."""

import doctest
from itertools import pairwise

import pytest
from flcore_kernels import ACCUMULATORS, STORAGE, BudgetTooSmall, BufferMismatch, UnknownDType, chunks, plan_chunks
from flcore_kernels.totals import Total, bytes_per_element
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import QUANTIZED


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    elements=st.integers(0, 10**12),
    dtype=st.sampled_from(list(STORAGE)),
    clients=st.integers(1, 10_000),
    budget=st.integers(1, 10**12),
    accumulate=st.sampled_from(ACCUMULATORS),
)
def test_chunks_cover_the_segment_within_the_budget_or_say_what_is_needed(
    elements: int, dtype: str, clients: int, budget: int, accumulate: str
) -> None:
    result = "float32" if dtype in QUANTIZED else dtype
    try:
        plan = plan_chunks(elements, dtype, clients=clients, budget_bytes=budget, accumulate=accumulate, result=result)
    except BudgetTooSmall as error:
        enough, told = error.needed_bytes, str(error)
    else:
        assert plan.chunk_elements % 256 == 0
        assert plan.chunk_bytes <= budget
        assert len(plan) == -(-elements // plan.chunk_elements)
        # Another 256 elements would not fit, or there is no need of them.
        each = -(-plan.chunk_bytes * 256 // plan.chunk_elements)
        assert plan.chunk_elements >= elements or plan.chunk_bytes + each > budget
        return
    assert enough > budget
    assert f"{enough:,}" in told
    plan_chunks(elements, dtype, clients=clients, budget_bytes=enough, accumulate=accumulate, result=result)
    with pytest.raises(BudgetTooSmall):
        plan_chunks(elements, dtype, clients=clients, budget_bytes=enough - 1, accumulate=accumulate, result=result)


def test_the_ranges_are_equal_and_leave_nothing_out() -> None:
    plan = plan_chunks(1_000_000, "float32", clients=10, budget_bytes=16_000_000)
    ranges = list(plan)
    assert ranges[0][0] == 0
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert ranges[-1][1] == 1_000_000
    assert {stop - start for start, stop in ranges[:-1]} == {plan.chunk_elements}
    assert len(ranges) == len(plan) == 4


def test_nothing_has_no_chunks() -> None:
    plan = plan_chunks(0, "bfloat16", clients=3, budget_bytes=10**6)
    assert (list(plan), len(plan), plan.chunk_elements) == ([], 0, 256)


def test_a_budget_counts_parts_total_and_result() -> None:
    plan = plan_chunks(10**9, "float32", clients=10, budget_bytes=(40 + 16 + 4) * 2560 + 80, accumulate="exact")
    assert (plan.chunk_elements, plan.chunk_bytes) == (2560, 60 * 2560 + 80)
    with pytest.raises(BudgetTooSmall) as caught:
        plan_chunks(10**9, "int8[256]", clients=2, budget_bytes=1, accumulate="float32", result="float32")
    assert caught.value.needed_bytes == 2 * 260 + 256 * 8
    with pytest.raises(UnknownDType, match="int4"):
        plan_chunks(1, "int4", clients=1, budget_bytes=10**9)


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_a_total_takes_what_is_planned_for_it(accumulate: str) -> None:
    assert Total.zeros(25_600, accumulate).nbytes == bytes_per_element(accumulate) * 25_600


def test_the_example_is_true() -> None:
    assert doctest.testmod(chunks).failed == 0


@pytest.mark.parametrize(("elements", "clients", "budget"), [(-1, 1, 10**6), (1, 0, 10**6), (1, 1, -5), (1, 1, 0)])
def test_nonsense_is_refused(elements: int, clients: int, budget: int) -> None:
    with pytest.raises((BufferMismatch, BudgetTooSmall)):
        plan_chunks(elements, "float32", clients=clients, budget_bytes=budget)


def test_an_unknown_accumulator_is_refused_by_name() -> None:
    with pytest.raises(BufferMismatch, match="accumulate is one of exact, float64, float32, not 'x'"):
        plan_chunks(1000, "float32", clients=1, budget_bytes=10**6, accumulate="x")
