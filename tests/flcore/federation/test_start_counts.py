"""The starts of jobs that the server did not survive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flcore.federation.job_database import JobDatabase
from flcore.federation.start_counts import StartCounts


@pytest.fixture
def database(tmp_path: Path) -> Iterator[JobDatabase]:
    with JobDatabase(tmp_path / "federation.sqlite") as opened:
        yield opened


def test_three_starts_in_a_row_are_the_last_ones(database: JobDatabase) -> None:
    for crashes in range(3):
        counts = StartCounts(database)  # the server is started again
        assert not counts.is_exhausted(7), crashes
        counts.begin(7)
    assert StartCounts(database).is_exhausted(7) and not StartCounts(database).is_exhausted(8)


def test_progress_makes_the_count_begin_anew(database: JobDatabase) -> None:
    for _ in range(5):
        counts = StartCounts(database)
        counts.begin(7)
        counts.begin(8)
        assert counts.clear(7) and not counts.clear(7)
    found = StartCounts(database)
    assert not found.is_exhausted(7) and found.is_exhausted(8)


def test_of_jobs_that_ran_at_two_crashes_one_runs_at_a_time(database: JobDatabase) -> None:
    for _ in range(2):
        counts = StartCounts(database)
        assert not counts.must_wait(8, [7])
        counts.begin(7)
        counts.begin(8)
    counts = StartCounts(database)
    counts.begin(7)
    assert counts.must_wait(8, [7]) and not counts.must_wait(9, [7]) and not counts.must_wait(8, [9])
    counts.clear(7)
    assert not counts.must_wait(8, [7]), "it has made progress"


def test_a_kill_while_the_workflow_waits_for_its_sites_does_not_count(database: JobDatabase) -> None:
    for _ in range(5):
        counts = StartCounts(database)
        counts.begin(7)
        counts.code_ended(7)
        counts.begin(8)
        counts.code_ended(8)
        counts.code_began(8)
    found = StartCounts(database)
    assert not found.is_exhausted(7) and found.is_exhausted(8)


def test_a_wait_after_progress_changes_nothing(database: JobDatabase) -> None:
    counts = StartCounts(database)
    counts.begin(7)
    counts.code_ended(7)
    counts.clear(7)
    counts.code_began(7)
    assert database.starts() == {}


def test_a_call_of_the_rule_while_the_workflow_waits_counts_once(database: JobDatabase) -> None:
    counts = StartCounts(database)
    counts.begin(7)
    counts.code_ended(7)
    assert database.starts() == {7: 0}
    for _ in range(3):  # of three sites at a time
        counts.code_began(7)
        assert database.starts() == {7: 1}
    for left in (1, 1, 0):
        counts.code_ended(7)
        assert database.starts() == {7: left}
