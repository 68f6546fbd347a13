"""The record of a run in its directory: what a server that was killed needs to go on in the same round.

A record is a SQLite database (`state.sqlite`) in WAL mode. With `synchronous=FULL` every change is on the disk when the
method returns: after a power failure the record has every change that a caller has seen succeed, and perhaps the one
after it. Without, the last changes may be lost with the power, though not with the process.

    run       facts about the run: its id, contract, the workflow's code, the secret for tokens
    calls     the results of the workflow's calls of the controller, in order
    answers   the answers that count for a call, in the order of their commits; a row is written before its receipt
    receipts  the last receipt of each client, which may have been lost with the server
    rounds    the record of each round that is over
    state     the workflow's own values, at the end of the last round
    changes   the count of the changes (see `row_checksums`)

The database has one owner, the process that holds the run directory's lock.
"""

import errno
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from flcore.disk_errors import ADVICE
from flcore.disk_sync import sync_directory
from flcore.errors import DiskError, RecordError
from flcore.server.history import Participation, RoundRecord
from flcore.server.record_tables import TABLES, find_damaged_table, insert_row
from flcore.server.row_checksums import COUNT_FILE, ChangeCount

STATE_FILE = "state.sqlite"
STATE_FORMAT = 2

RECORD_SUFFIXES = ("-wal", "-shm", "")
"""How the names of a record's files end. SQLite would apply a log that is left to a new database of its name."""

PRECEDES_HISTORY = "precedes history"
"""The fact that tells whether a round is on the disk in the record before it is in the history: "yes" or "no"."""

ANSWERS_IN_RESULT = ("validate", "evaluate", "collect")
"""The calls of the controller whose result has what their answers say."""

_PRIMARY_CODE = 0xFF
"""The bits of SQLite's error codes that name the kind of an error."""

_DISK_ADVICE = {
    sqlite3.SQLITE_FULL: ADVICE[errno.ENOSPC],
    sqlite3.SQLITE_IOERR: ADVICE[errno.EIO],
    sqlite3.SQLITE_READONLY: ADVICE[errno.EROFS],
    sqlite3.SQLITE_CANTOPEN: ADVICE[errno.EACCES],
}
"""What to do about SQLite's errors that are the disk's."""

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another program has the file open, such as the sqlite3 shell or a backup: end it, and start "
    "again",
}
"""What to do about other errors of SQLite. The rest means a damaged file."""

_RESTORE = "restore its files as the server left them, or begin anew (--fresh)"


@dataclass(frozen=True)
class RecordedCall:
    """A call of the controller that is over.

    Attributes:
        number: Its number in the run, from 1.
        round: The round in which it was made; 0 before the first one.
        kind: The controller's method.
        arguments: What the result depends on, a JSON value.
        result: The result, a JSON value.
        record: The JSON of the round's record at its end. None once the round is over.
    """

    number: int
    round: int
    kind: str
    arguments: Any
    result: Any = None
    record: str | None = None


@dataclass(frozen=True)
class RecordedAnswer:
    """An answer that counts.

    Attributes:
        client: The client's name.
        participation: Its entry in the history.
        invalid_metrics: The reason of each metric that was dropped.
        directory: The name of the directory with its update; empty for an answer of metrics alone.
    """

    client: str
    participation: Participation
    invalid_metrics: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""


class RecordedReceipt(NamedTuple):
    """A receipt: the id and the token of the assignment, and the digest that identifies the answer."""

    assignment_id: int
    token: bytes
    key: str


class RunState:
    """The record of one run. Methods may be called from any thread.

    The lock is held while SQLite works, disk included: the connection has one user at a time, and an answer is on the
    disk before its receipt is sent.

    Args:
        path: The file. It is created if missing.
        is_synced: Whether a change is on the disk when the method returns. Default: True.
        shown_as: The path that errors name, for a copy. Default: None, `path`.

    Raises:
        RecordError: The database cannot be read or written; the message has the system's reason.
    """

    def __init__(self, path: Path, *, is_synced: bool = True, shown_as: Path | None = None) -> None:
        self.path, self._shown = path, shown_as or path
        self._lock = threading.Lock()
        self._count: ChangeCount | None = None
        with self._report_errors():
            # Its owner's alone: it has the secret of the tokens. SQLite gives its log the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(is_synced=is_synced)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. May be called twice."""
        with self._lock:
            self._connection.close()
            if self._count is not None:
                self._count.close()

    # The run.

    def facts(self) -> dict[str, str]:
        """Return the facts about the run; none of a run that has not begun."""
        return dict(self._rows("SELECT key, value FROM run"))

    def add_facts(self, facts: Mapping[str, str]) -> None:
        """Record facts about the run."""
        with self._transaction() as connection:
            for fact in sorted(facts.items()):
                insert_row(connection, "run", *fact)

    def is_empty(self) -> bool:
        """Whether nothing but facts is recorded: no result of a call, and no answer."""
        return not self._rows("SELECT 1 FROM calls UNION SELECT 1 FROM answers LIMIT 1")

    # The controller's calls.

    def calls(self) -> list[RecordedCall]:
        """Return all calls that are over, in order."""
        rows = self._rows("SELECT number, round, kind, arguments, result, record FROM calls ORDER BY number")
        with self._report_damage():
            return [
                RecordedCall(number, round_, kind, json.loads(arguments), json.loads(result), record)
                for number, round_, kind, arguments, result, record in rows
            ]

    def end_call(self, call: RecordedCall) -> None:
        """Record a call that is over."""
        row = (call.number, call.round, call.kind, to_json(call.arguments), to_json(call.result), call.record)
        with self._transaction() as connection:
            insert_row(connection, "calls", *row)
            if call.kind in ANSWERS_IN_RESULT:  # those of training are needed until the end of a round
                connection.execute("DELETE FROM answers WHERE call = ?", (call.number,))

    def forget_after(self, call: int) -> None:
        """Remove what came after a call that has to be made again: later calls, their answers, and ends of rounds."""
        with self._transaction() as connection:
            insert_row(connection, "run", PRECEDES_HISTORY, "no")  # the history still has rounds that are forgotten
            connection.execute("DELETE FROM calls WHERE number > ?", (call,))
            connection.execute("DELETE FROM answers WHERE call > ?", (call,))
            connection.execute("DELETE FROM rounds WHERE last_call >= ?", (call,))

    # The rounds.

    def end_round(
        self, record: RoundRecord, last_call: int, state: Mapping[str, bytes], released: Iterable[int] = ()
    ) -> None:
        """Record a round that is over.

        Args:
            record: The round's record.
            last_call: The number of its last call.
            state: The workflow's values at its end.
            released: The calls whose updates are in published models: their answers are removed. Default: none.
        """
        with self._transaction() as connection:
            connection.executemany("DELETE FROM answers WHERE call = ?", [(call,) for call in released])
            insert_row(connection, "rounds", record.round, record.to_json(), last_call, verb="INSERT")
            # What its calls held for a restart within the round is not needed any more, and would grow with the rounds.
            kept = connection.execute(
                "SELECT number, round, kind, arguments, result FROM calls WHERE number <= ? AND record IS NOT NULL",
                (last_call,),
            ).fetchall()
            for call in kept:
                insert_row(connection, "calls", *call, None)
            connection.execute("DELETE FROM state")
            for value in state.items():
                insert_row(connection, "state", *value)

    def rounds(self) -> list[RoundRecord]:
        """Return the records of the rounds that are over, in order."""
        rows = self._rows("SELECT record FROM rounds ORDER BY round")
        with self._report_damage():
            return [RoundRecord.from_json(text) for (text,) in rows]

    def last_round(self) -> int:
        """Return the number of the last round that is over; 0 if none is."""
        ((number,),) = self._rows("SELECT coalesce(max(round), 0) FROM rounds")
        return int(number)

    def last_call_of_rounds(self) -> int:
        """Return the number of the last call before the end of the last round; 0 if no round is over."""
        ((number,),) = self._rows("SELECT coalesce(max(last_call), 0) FROM rounds")
        return int(number)

    def workflow_values(self) -> dict[str, bytes]:
        """Return the workflow's values at the end of the last round that is over."""
        return dict(self._rows("SELECT key, value FROM state"))

    # The answers.

    def add_answer(self, call: int, answer: RecordedAnswer, receipt: RecordedReceipt | None = None) -> None:
        """Record an answer that counts, and its receipt. Its update's files are on the disk already."""
        row = (
            call,
            answer.client,
            to_json(asdict(answer.participation)),
            to_json(dict(answer.invalid_metrics)),
            answer.directory,
        )
        with self._transaction() as connection:
            insert_row(connection, "answers", *row, verb="INSERT")
            if receipt is not None:
                insert_row(connection, "receipts", answer.client, *receipt)

    def receipts(self) -> dict[str, RecordedReceipt]:
        """Return the last receipt of each client."""
        rows = self._rows("SELECT client, assignment, token, key FROM receipts")
        return {client: RecordedReceipt(*receipt) for client, *receipt in rows}

    def remove_answer(self, call: int, client: str) -> None:
        """Record that an answer does not count any more, as where the disk has lost its update."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM answers WHERE call = ? AND client = ?", (call, client))

    def answers(self, call: int) -> list[RecordedAnswer]:
        """Return the answers to a call, in the order of their commits."""
        rows = self._rows(
            "SELECT client, participation, invalid_metrics, directory FROM answers WHERE call = ? ORDER BY position",
            (call,),
        )
        with self._report_damage():
            return [
                RecordedAnswer(client, Participation(**json.loads(part)), json.loads(invalid), directory)
                for client, part, invalid, directory in rows
            ]

    def _prepare(self, *, is_synced: bool) -> None:
        """Set the connection up, and make the tables of a new database."""
        connection = self._connection
        # Exclusive before WAL: SQLite then needs no memory shared between processes, which network file systems lack.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={'FULL' if is_synced else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in TABLES.split(";"):
                connection.execute(statement)
            insert_row(connection, "changes", secrets.token_hex(8), 0)
            connection.execute(f"PRAGMA user_version = {STATE_FORMAT}")
        connection.execute("COMMIT")
        if found not in (0, STATE_FORMAT):
            raise RecordError(
                f"{self._shown}: expected the record of a run in format {STATE_FORMAT}, got format {found}; go on with "
                f"the version of flcore that wrote it, or begin anew (--fresh)"
            )
        if found:
            self._require_undamaged()
        rows = connection.execute("SELECT record, count FROM changes").fetchall()
        if len(rows) != 1:
            raise self._damaged("changes")
        ((record, count),) = rows
        self._count = ChangeCount(self.path.with_name(COUNT_FILE), record, is_writable=is_synced)
        if self._count.found > count:
            raise RecordError(
                f"{self._shown}: expected the record of a run with its last changes ({self._count.found}), got one "
                f"that ends before them ({count}): a file of it is damaged, missing or older; {_RESTORE}"
            )

    def _require_undamaged(self) -> None:
        """Raise `RecordError` unless the database is well-formed, and each row has its checksum."""
        connection = self._connection
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise self._damaged("the database")
        damaged = find_damaged_table(connection)
        if damaged:
            raise self._damaged(f"table {damaged}")

    def _damaged(self, place: str) -> RecordError:
        return RecordError(f"{self._shown}: expected the record of a run, got a damaged one ({place}); {_RESTORE}")

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
                ((record, count),) = self._connection.execute("SELECT record, count FROM changes").fetchall()
                count += 1
                insert_row(self._connection, "changes", record, count)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            if self._count is not None:
                self._count.note(count)

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            text = f"{self._shown}: the run's record cannot be read or written: {error}"
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
            if code in _DISK_ADVICE:
                raise DiskError(f"{text}; {_DISK_ADVICE[code]}") from error
            raise RecordError(f"{text}; {_ADVICE.get(code, _RESTORE)}") from error
        except UnicodeError as error:
            raise self._damaged(str(error)) from error

    @contextmanager
    def _report_damage(self) -> Iterator[None]:
        """Values that cannot be parsed are a damaged record."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(repr(error)) from error


def remove_record(path: Path) -> None:
    """Remove a record: first the database, which may be damaged without its log."""
    if path.exists():
        path.unlink()
        sync_directory(path.parent)
    for suffix in RECORD_SUFFIXES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """Return the canonical JSON of a value: the same value is the same text. NaN is `NaN`, as Python reads it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
