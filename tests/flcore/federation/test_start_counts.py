"""The starts of jobs that the server did not survive."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

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


def test_a_call_of_the_rule_begins_only_when_the_start_is_counted_on_the_disk(
    database: JobDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, change, is_writing, may_write = StartCounts(database), database.change_starts, Event(), Event()
    counts.begin(7)
    counts.code_ended(7)

    def slowly(number: int, by: int) -> None:
        is_writing.set()
        assert may_write.wait(60.0)
        change(number, by)

    def call_rule() -> None:
        counts.code_began(7)
        found.append(database.starts())

    monkeypatch.setattr(database, "change_starts", slowly)
    found: list[dict[int, int]] = []
    first = Thread(target=counts.code_began, args=(7,))
    second = Thread(target=call_rule)
    first.start()
    assert is_writing.wait(60.0)
    second.start()
    second.join(0.2)
    assert second.is_alive() and not found
    may_write.set()
    first.join()
    second.join()
    assert found == [{7: 1}]
