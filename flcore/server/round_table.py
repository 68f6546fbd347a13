"""The rounds of a run as a table of text."""

from collections.abc import Iterator, Sequence

from flcore.number_text import metric_text
from flcore.server.history import RoundRecord
from flcore.text import counted, printable

MAX_METRIC_COLUMNS = 8
MAX_COLUMN_CHARACTERS = 24
MAX_REASON_CHARACTERS = 200

MAX_FAILURES_SHOWN, MAX_FAILURE_CHARACTERS = 50, 500
"""The most clients that have a line on their failures, and the most characters of a reason there."""


def round_table(history: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield a heading and a line for each round. The columns are aligned; notes follow them.

    The column of clients has those whose updates count, of those that were asked to train; "-" if none was.

    >>> list(round_table([]))
    ['no round has finished']
    """
    if not history:
        yield "no round has finished"
        return
    names = list(dict.fromkeys(name for record in history for name in record.metrics))
    shown = names[:MAX_METRIC_COLUMNS]
    rows = [["round", "clients", *(printable(name, MAX_COLUMN_CHARACTERS) for name in shown), "MB", "seconds"]]
    rows += [_cells(record, shown) for record in history]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, notes in zip(rows, ["", *(_notes(record) for record in history)], strict=True):
        cells = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{cells}  {notes}".rstrip()
    if len(names) > len(shown):
        yield f"and {len(names) - len(shown)} more metrics (--json)"


def failure_lines(history: Sequence[RoundRecord]) -> Iterator[str]:
    """Yield a line for each client that failed or was refused: in how many rounds, and why the last time.

    >>> list(failure_lines([RoundRecord(1), RoundRecord(2, failed={"train": {"north": "refused: element 7 is nan"}})]))
    ['north was left out of 1 of 2 rounds: refused: element 7 is nan']
    """
    rounds, reasons = dict[str, int](), dict[str, str]()
    for record in history:
        for client in sorted(record.failed_clients):
            rounds[client] = rounds.get(client, 0) + 1
        for failed in record.failed.values():
            reasons |= failed
    for client, count in list(rounds.items())[:MAX_FAILURES_SHOWN]:
        reason = printable(reasons[client], MAX_FAILURE_CHARACTERS)
        yield f"{printable(client, 64)} was left out of {count} of {counted(len(history), 'round')}: {reason}"
    if len(rounds) > MAX_FAILURES_SHOWN:
        yield f"and {counted(len(rounds) - MAX_FAILURES_SHOWN, 'more client')}"


def _cells(record: RoundRecord, names: Sequence[str]) -> list[str]:
    metrics = record.metrics
    traffic = (record.bytes_sent + record.bytes_received) / 1e6
    seconds = record.seconds.get("round")
    return [
        str(record.round),
        f"{len(record.updates)} of {len(record.sampled)}" if record.sampled else "-",
        *(metric_text(metrics[name]) if name in metrics else "-" for name in names),
        f"{traffic:,.1f}",
        "-" if seconds is None else f"{seconds:.2f}",
    ]


def _notes(record: RoundRecord) -> str:
    notes = ["best"] * record.is_best
    if record.skipped:
        notes.append(f"skipped: {printable(record.skipped, MAX_REASON_CHARACTERS)}")
    if record.stopped:
        notes.append(f"the run ended early: {printable(record.stopped, MAX_REASON_CHARACTERS)}")
    if record.asked_again:
        notes.append(f"retries: {record.asked_again}")
    if record.failed_clients:
        notes.append(f"left out: {len(record.failed_clients)}")
    return ", ".join(notes)
