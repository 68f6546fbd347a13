"""The database of a federation: its jobs and their states. What it says is true; all else follows from it.

A job's state changes in one transaction, before the change has an effect that others see. `synchronous=FULL`: a change
is on the disk when its method returns. The rounds, answers and receipts of a job are in its run's record
(`flcore.server.run_state`).

    jobs       one row for each job that is not deleted
    refusals   why a site does not take part in a job, by job and site
    sites      the clients that have ever connected
    parts      what each site has done in a job that is over
    starts     how often a job was started since its last progress
    identity   one row: the random id of the federation
"""

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from flcore.errors import RecordError
from flcore.federation.job_rows import JobLine, JobRow, NewJob, QueueSize
from flcore.federation.messages import JobState
from flcore.federation.site_parts import SitePart
from flcore.text import utc_time

DATABASE_FILE = "federation.sqlite"
DATABASE_FORMAT = 1
BUSY_TIMEOUT_S = 0.5
"""A reader of another program may hold the database for a moment when it is opened."""


# AUTOINCREMENT: the number of a deleted job is not given again.
_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    lead TEXT NOT NULL, owner TEXT NOT NULL, pack_digest TEXT NOT NULL, pack_nbytes INTEGER NOT NULL,
    signer TEXT NOT NULL, contract TEXT NOT NULL, contract_fingerprint TEXT NOT NULL, code_digest TEXT NOT NULL,
    changes TEXT NOT NULL, rounds INTEGER NOT NULL, resident_bytes INTEGER NOT NULL,
    submitted TEXT NOT NULL, started TEXT NOT NULL, ended TEXT NOT NULL, round INTEGER NOT NULL, metrics TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX jobs_by_pack ON jobs (pack_digest);
CREATE TABLE refusals (
    job INTEGER NOT NULL, client TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, client)
) STRICT, WITHOUT ROWID;
CREATE TABLE sites (client TEXT PRIMARY KEY, joined TEXT NOT NULL) STRICT, WITHOUT ROWID
"""

# Apart from the other tables: a database of this format may be without them.
_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS identity (row INTEGER PRIMARY KEY CHECK (row = 1), id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS parts (
    job INTEGER NOT NULL, client TEXT NOT NULL, rounds INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (job, client)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS starts (job INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT
"""

_COLUMNS = tuple(JobRow.__dataclass_fields__)
_LINE_COLUMNS = tuple(JobLine.__dataclass_fields__)
_NEW_COLUMNS = tuple(NewJob.__dataclass_fields__)
_JSON = ("changes", "metrics")


class JobDatabase:
    """The database of one federation. Methods may be called from any thread.

    The lock is held while SQLite works, disk included: the connection has one user at a time.

    Args:
        path: The file. It is created if missing, for its owner alone.

    Attributes:
        federation_id: A random id, made with the database.

    Raises:
        RecordError: The database cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._report_errors():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. May be called twice."""
        with self._lock:
            self._connection.close()

    def add(self, job: NewJob) -> JobRow:
        """Queue a job. Returns it with its number."""
        values = [_encode(name, getattr(job, name)) for name in _NEW_COLUMNS]
        now = utc_time()
        with self._transaction() as connection:
            columns = f"{', '.join(_NEW_COLUMNS)}, state, reason, submitted, started, ended, round, metrics"
            marks = ", ".join("?" * len(_NEW_COLUMNS))
            cursor = connection.execute(
                f"INSERT INTO jobs ({columns}) VALUES ({marks}, 'queued', '', ?, '', '', 0, '{{}}')",  # noqa: S608
                (*values, now),
            )
        return JobRow(**vars(job), number=cursor.lastrowid or 0, submitted=now)

    def start(self, number: int) -> bool:
        """A job that is queued runs now. Returns whether it was queued."""
        return self._change("state = 'running', reason = '', started = ?", (utc_time(),), number, "state = 'queued'")

    def end(
        self,
        number: int,
        state: JobState,
        reason: str = "",
        round_: int = 0,
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """A job that is queued or runs is over. Returns whether it was.

        Args:
            number: The job's number.
            state: "done", "failed" or "aborted".
            reason: Why, in one line; empty for one that has run all of its rounds.
            round_: The number of rounds that are over.
            metrics: The metrics of the last one.
        """
        return self._change(
            "state = ?, reason = ?, ended = ?, round = ?, metrics = ?",
            (state, reason, utc_time(), round_, json.dumps(dict(metrics))),
            number,
            "state IN ('queued', 'running')",
        )

    def interrupt(self, number: int, reason: str, round_: int, metrics: Mapping[str, float]) -> None:
        """A job that runs goes on when its server is started again. The arguments are those of `end`."""
        values = reason, round_, json.dumps(dict(metrics))
        self._change("reason = ?, round = ?, metrics = ?", values, number, "state = 'running'")

    def set_reason(self, number: int, reason: str) -> None:
        """Record why a job that runs does not go on."""
        self._change("reason = ?", (reason,), number, "state = 'running'")

    def delete(self, number: int) -> bool:
        """Remove a job that is over. Returns whether it was there, and over."""
        with self._transaction() as connection:
            found = connection.execute(
                "DELETE FROM jobs WHERE number = ? AND state NOT IN ('queued', 'running')", (number,)
            )
            if found.rowcount:
                for table in ("refusals", "parts", "starts"):
                    connection.execute(f"DELETE FROM {table} WHERE job = ?", (number,))  # noqa: S608 - as below
        return bool(found.rowcount)

    def find(self, job_id: str) -> JobRow | None:
        """Return a job by its id; None if there is none."""
        name, _, number = job_id.rpartition("-")
        rows = self._select("WHERE number = ? AND name = ?", (int(number), name)) if number.isdecimal() else []
        return rows[0] if rows else None

    def jobs(self, states: Sequence[JobState] = (), limit: int = -1) -> list[JobRow]:
        """Return jobs, the newest first.

        Args:
            states: Their states. Default: all.
            limit: The most jobs. Default: no limit.
        """
        where = f"WHERE state IN ({', '.join('?' * len(states))}) " if states else ""
        return self._select(f"{where}ORDER BY number DESC LIMIT ?", (*states, limit))

    def lines(self, states: Sequence[JobState], limit: int) -> list[JobLine]:
        """Return what a list shows of the newest `limit` jobs in some states, or in all. It reads no contract."""
        where = f"WHERE state IN ({', '.join('?' * len(states))}) " if states else ""
        query = f"SELECT {', '.join(_LINE_COLUMNS)} FROM jobs {where}ORDER BY number DESC LIMIT ?"  # noqa: S608 - as below
        return [JobLine(*row) for row in self._rows(query, (*states, limit))]

    def queue_size(self, owner: str) -> QueueSize:
        """Return how much the queue holds."""
        query = (
            "SELECT count(*), coalesce(sum(owner = ?), 0), coalesce(sum(length(contract)), 0) FROM jobs "
            "WHERE state = 'queued'"
        )
        return QueueSize(*self._rows(query, (owner,))[0])

    def find_number(self, number: int) -> JobRow | None:
        """Return a job by its number; None if there is none."""
        rows = self._select("WHERE number = ?", (number,))
        return rows[0] if rows else None

    def open_jobs(self) -> list[tuple[int, JobState]]:
        """Return number and state of each job that is queued or runs, the oldest first."""
        return self._rows("SELECT number, state FROM jobs WHERE state IN ('queued', 'running') ORDER BY number")

    def queued_jobs(self) -> int:
        """Return the number of jobs that are queued."""
        [(count,)] = self._rows("SELECT count(*) FROM jobs WHERE state = 'queued'")
        return int(count)

    def ids(self) -> set[str]:
        """Return the ids of all jobs."""
        return {f"{name}-{number}" for number, name in self._rows("SELECT number, name FROM jobs")}

    def pack_digests(self) -> set[str]:
        """Return the digests of all packs that jobs have."""
        return {digest for (digest,) in self._rows("SELECT DISTINCT pack_digest FROM jobs")}

    def uses_pack(self, digest: str) -> bool:
        """Whether a job has this pack."""
        return bool(self._rows("SELECT 1 FROM jobs WHERE pack_digest = ? LIMIT 1", (digest,)))

    def owns_pack(self, owner: str, digest: str) -> bool:
        """Whether a job of this owner has this pack."""
        return bool(self._rows("SELECT 1 FROM jobs WHERE pack_digest = ? AND owner = ? LIMIT 1", (digest, owner)))

    def refuse(self, number: int, client: str, reason: str) -> None:
        """Record why a site does not run a job. A later reason replaces an earlier one."""
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?)", (number, client, reason))

    def accept(self, number: int, client: str) -> None:
        """A site runs a job after all."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM refusals WHERE job = ? AND client = ?", (number, client))

    def refusals(self, number: int) -> dict[str, str]:
        """Return the reason of each site that has refused a job."""
        return dict(self._rows("SELECT client, reason FROM refusals WHERE job = ?", (number,)))

    def set_parts(self, number: int, parts: Mapping[str, SitePart]) -> None:
        """Record what each site has done in a job. Replaces an earlier record."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM parts WHERE job = ?", (number,))
            rows = [(number, client, *part) for client, part in parts.items()]
            connection.executemany("INSERT INTO parts VALUES (?, ?, ?, ?)", rows)

    def parts(self, number: int) -> dict[str, SitePart]:
        """Return what each site has done in a job that is over."""
        rows = self._rows("SELECT client, rounds, reason FROM parts WHERE job = ?", (number,))
        return {client: SitePart(rounds, reason) for client, rounds, reason in rows}

    def count_start(self, number: int) -> None:
        """Record one more start of a job."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO starts VALUES (?, 1) ON CONFLICT (job) DO UPDATE SET count = count + 1", (number,)
            )

    def change_starts(self, number: int, change: int) -> None:
        """Add to the starts of a job, if any are recorded."""
        with self._transaction() as connection:
            connection.execute("UPDATE starts SET count = count + ? WHERE job = ?", (change, number))

    def clear_starts(self, number: int) -> None:
        """Forget the starts of a job."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM starts WHERE job = ?", (number,))

    def starts(self) -> dict[int, int]:
        """Return the starts of each job since its last progress."""
        return dict(self._rows("SELECT job, count FROM starts"))

    def add_site(self, client: str) -> None:
        """Record that a client has connected."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO sites VALUES (?, ?)", (client, utc_time()))

    def sites(self) -> set[str]:
        """Return the clients that have ever connected."""
        return {client for (client,) in self._rows("SELECT client FROM sites")}

    def _prepare(self) -> None:
        connection = self._connection
        # Exclusive before WAL: SQLite then needs no memory shared between processes, and no second server opens it.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {DATABASE_FORMAT}")
        connection.execute("COMMIT")
        if found not in (0, DATABASE_FORMAT):
            raise RecordError(
                f"{self.path}: expected a federation's database in format {DATABASE_FORMAT}, got format {found}; go on "
                "with the version of flcore that wrote it, or give another directory (--out)"
            )
        if found and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise RecordError(f"{self.path}: expected a federation's database, got a damaged one; restore the file")
        for statement in _LATER_TABLES.split(";"):
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (secrets.token_hex(16),))
        self.federation_id: str = connection.execute("SELECT id FROM identity").fetchone()[0]

    def _change(self, change: str, values: tuple[Any, ...], number: int, condition: str) -> bool:
        with self._transaction() as connection:
            changed = connection.execute(
                f"UPDATE jobs SET {change} WHERE number = ? AND {condition}",  # noqa: S608 - texts of this module
                (*values, number),
            )
        return bool(changed.rowcount)

    def _select(self, clause: str, parameters: tuple[Any, ...]) -> list[JobRow]:
        rows = self._rows(f"SELECT {', '.join(_COLUMNS)} FROM jobs {clause}", parameters)  # noqa: S608 - as above
        return [
            JobRow(
                **{
                    name: json.loads(value) if name in _JSON else value
                    for name, value in zip(_COLUMNS, row, strict=True)
                }
            )
            for row in rows
        ]

    def _rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._report_errors():
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One change, whole or not at all."""
        with self._lock, self._report_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RecordError(
                f"{self.path}: the federation's database cannot be read or written: {error}; is another server using "
                "it, is the disk full?"
            ) from error


def _encode(name: str, value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if name in _JSON else value
