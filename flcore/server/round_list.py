"""The history of a run as a list, which a session shows in a line and a notebook as a table."""

from flcore.html_table import MAX_ROWS, html_table
from flcore.number_text import MAX_METRICS_SHOWN, metric_text
from flcore.server.history import RoundRecord
from flcore.text import counted, printable


class History(list[RoundRecord]):
    """The records of a run's rounds, in order: a list.

    Example:
        >>> History([RoundRecord(1, ("a", "b"), train={"loss": 0.5})])
        <History: 1 round; round 1: 0 of 2 clients, loss 0.5, 0 B>
    """

    def __repr__(self) -> str:
        return (
            f"<History: {counted(len(self), 'round')}; round {self[-1].round}: {self[-1].summary()}>"
            if self
            else "<History: no rounds>"
        )

    def to_html(self) -> str:
        """Return a table of the last `MAX_ROWS` rounds. Names of metrics come from clients, and are escaped."""
        shown = self[-MAX_ROWS:]
        metrics = list(dict.fromkeys(name for record in shown for name in record.metrics))[:MAX_METRICS_SHOWN]
        head = ["round", "clients", *(printable(name, 64) for name in metrics), "failed", "MB", "s", ""]
        what = f"the last {len(shown)} of {len(self):,} rounds" if len(shown) < len(self) else f"{len(self)} rounds"
        return html_table(f"History: {what}", head, [_row(record, metrics) for record in shown])

    _repr_html_ = to_html


def _row(record: RoundRecord, metrics: list[str]) -> list[str]:
    values = record.metrics
    marks = ["skipped"] * bool(record.skipped) + ["best"] * record.is_best
    return [
        str(record.round),
        f"{len(record.updates)} of {len(record.sampled)}",
        *(metric_text(values[name]) if name in values else "" for name in metrics),
        str(len(record.failed_clients)),
        f"{(record.bytes_sent + record.bytes_received) / 1e6:,.1f}",
        f"{record.seconds['round']:.2f}" if "round" in record.seconds else "",
        ", ".join(marks),
    ]
