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
        notes.append(f"failed: {len(record.failed_clients)}")
    return ", ".join(notes)
