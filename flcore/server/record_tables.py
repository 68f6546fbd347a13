"""The tables of a run's record. Each row has a checksum (see `row_checksums`)."""

import sqlite3

from flcore.server.row_checksums import Value, checksum

TABLES = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, round INTEGER NOT NULL, kind TEXT NOT NULL, arguments TEXT NOT NULL,
    result TEXT NOT NULL, record TEXT, checksum TEXT NOT NULL
) STRICT;
CREATE TABLE answers (
    position INTEGER PRIMARY KEY AUTOINCREMENT, call INTEGER NOT NULL, client TEXT NOT NULL,
    participation TEXT NOT NULL, invalid_metrics TEXT NOT NULL, directory TEXT NOT NULL, checksum TEXT NOT NULL,
    UNIQUE (call, client)
) STRICT;
CREATE TABLE receipts (
    client TEXT PRIMARY KEY, assignment INTEGER NOT NULL, token BLOB NOT NULL, key TEXT NOT NULL,
    checksum TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE rounds (
    round INTEGER PRIMARY KEY, record TEXT NOT NULL, last_call INTEGER NOT NULL, checksum TEXT NOT NULL
) STRICT;
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE changes (record TEXT PRIMARY KEY, count INTEGER NOT NULL, checksum TEXT NOT NULL) STRICT, WITHOUT ROWID
"""

_CHECKED_COLUMNS = {
    "run": "key, value",
    "calls": "number, round, kind, arguments, result, record",
    "answers": "call, client, participation, invalid_metrics, directory",
    "receipts": "client, assignment, token, key",
    "rounds": "round, record, last_call",
    "state": "key, value",
    "changes": "record, count",
}
"""The columns of each table that its checksum covers, in order."""


def insert_row(connection: sqlite3.Connection, table: str, *values: Value, verb: str = "INSERT OR REPLACE") -> None:
    """Insert a row with its checksum."""
    columns, marks = f"{_CHECKED_COLUMNS[table]}, checksum", ", ".join("?" * (len(values) + 1))
    row = (*values, checksum(table, *values))
    connection.execute(f"{verb} INTO {table} ({columns}) VALUES ({marks})", row)


def find_damaged_table(connection: sqlite3.Connection) -> str:
    """Return the name of a table with a row whose values do not match its checksum; empty if there is none."""
    # The checksums are compared here and not in a function of SQLite's: SQLite would turn the exception of a signal
    # that comes within such a function into an error of its own.
    for table, columns in _CHECKED_COLUMNS.items():
        for *values, found in connection.execute(f"SELECT {columns}, checksum FROM {table}"):  # noqa: S608
            if found != checksum(table, *values):
                return table
    return ""
