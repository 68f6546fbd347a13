"""The database of a federation: a change is there after every kind of end, and numbers ascend for ever."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from flcore.errors import RecordError
from flcore.federation.job_database import JobDatabase
from flcore.federation.job_rows import JobRow, NewJob
from flcore.federation.site_parts import SitePart

NEW = NewJob("digits", "alice", "lead/alice", "a" * 64, 10, "", "{}", "f" * 64, "c" * 64, {"server.rounds": 2}, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "federation.sqlite"


def test_a_job_goes_through_its_states_and_is_there_when_it_is_opened_again(path: Path) -> None:
    with JobDatabase(path) as database:
        row = database.add(NEW)
        assert (row.id, row.state) == ("digits-1", "queued")
        assert database.start(1) and not database.start(1)
        assert database.end(1, "done", "", 2, {"accuracy": 0.5})
        assert not database.end(1, "failed", "too late"), "a job ends once"
    with JobDatabase(path) as database:
        found = database.find("digits-1")
        assert found is not None
        assert (found.state, found.round, found.metrics, found.changes) == ("done", 2, {"accuracy": 0.5}, NEW.changes)
        assert found.is_over and found.started and found.ended
    assert path.stat().st_mode & 0o777 == 0o600


def test_each_federation_has_an_id_of_its_own_that_stays(path: Path) -> None:
    with JobDatabase(path) as database, JobDatabase(path.with_name("other.sqlite")) as other:
        first = database.federation_id
        assert len(first) == 32 and other.federation_id != first
    with JobDatabase(path) as database:
        assert database.federation_id == first


def test_an_abort_of_a_queued_job_is_its_end(path: Path) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        assert database.end(1, "aborted", "aborted by alice")
        assert not database.start(1)


@pytest.mark.parametrize("wrong", ["digits-2", "other-1", "digits", "digits-x", "-1", "", "digits-99999999999999999"])
def test_an_id_that_does_not_exist_is_not_found(path: Path, wrong: str) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        assert database.find(wrong) is None


def test_the_number_of_a_deleted_job_is_not_given_again(path: Path) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        assert not database.delete(1), "it waits"
        database.start(1)
        assert not database.delete(1), "it runs"
        database.end(1, "failed", "reason")
        database.refuse(1, "north", "no")
        database.set_parts(1, {"north": SitePart(2, "no data")})
        database.count_start(1)
        assert database.parts(1) == {"north": SitePart(2, "no data")} and database.starts() == {1: 1}
        assert database.delete(1) and not database.delete(1)
        assert (database.refusals(1), database.parts(1), database.starts()) == ({}, {}, {})
    with JobDatabase(path) as database:
        assert database.add(NEW).number == 2


def test_jobs_are_listed_newest_first_by_state_up_to_a_limit(path: Path) -> None:
    with JobDatabase(path) as database:
        for _ in range(4):
            database.add(NEW)
        database.start(2)
        database.end(1, "done")
        assert [row.number for row in database.jobs()] == [4, 3, 2, 1]
        assert [row.number for row in database.jobs(("queued", "running"), 2)] == [4, 3]
        assert database.open_jobs() == [(2, "running"), (3, "queued"), (4, "queued")]
        assert database.ids() == {f"digits-{number}" for number in range(1, 5)}


def test_refusals_and_sites_are_kept(path: Path) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        database.refuse(1, "north", "not signed")
        database.refuse(1, "north", "outside its hours")
        database.refuse(1, "south", "no")
        database.accept(1, "south")
        database.add_site("north")
        database.add_site("north")
    with JobDatabase(path) as database:
        assert database.refusals(1) == {"north": "outside its hours"}
        assert database.sites() == {"north"}


def test_packs_are_used_while_a_job_has_them(path: Path) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        assert database.uses_pack("a" * 64) and not database.uses_pack("b" * 64)
        assert database.pack_digests() == {"a" * 64}


def test_a_copy_taken_at_any_time_has_each_change_that_was_made(path: Path, tmp_path: Path) -> None:
    def copied_rows(name: str) -> list[JobRow]:
        copy = tmp_path / name
        copy.mkdir()
        for file in tmp_path.glob("federation.sqlite*"):  # as a killed process leaves them
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy)
        with JobDatabase(copy / path.name) as found:
            return found.jobs()

    with JobDatabase(path) as database:
        for number in range(1, 6):
            database.add(NEW)
            assert next(row.state for row in copied_rows(f"{number}-queued")) == "queued"
            database.start(number)
            assert next(row.state for row in copied_rows(f"{number}-running")) == "running"
            database.end(number, "done")
            assert [row.state for row in copied_rows(f"{number}-done")] == ["done"] * number


def test_a_database_that_is_open_is_not_opened_twice(path: Path) -> None:
    with JobDatabase(path) as database:
        database.add(NEW)
        with pytest.raises(RecordError, match="locked; is another server using it"):
            JobDatabase(path)


def test_a_damaged_or_foreign_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(RecordError, match="cannot be read or written"):
        JobDatabase(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(RecordError, match="expected a federation's database in format 1, got format 9"):
        JobDatabase(path)
