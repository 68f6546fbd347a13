"""A round in one line."""

from flcore.job.contract import Contract
from flcore.server.history import RoundRecord

MOST_METRICS = 8
"""How many metrics a line shows."""


def round_line(record: RoundRecord, contract: Contract) -> str:
    """Return what a person wants to know of a round, in one line."""
    metrics = {**record.train, **record.validate}
    skipped = ", skipped" if record.skipped else ""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:MOST_METRICS])
    shown += f" and {len(metrics) - MOST_METRICS} more" if len(metrics) > MOST_METRICS else ""
    traffic = (record.bytes_sent + record.bytes_received) / 1e6
    return (
        f"round {record.round}/{contract.server.rounds}: {len(record.updates)} of {len(record.sampled)} clients, "
        f"{shown or 'no metrics'}, {traffic:,.1f} MB, {record.seconds['round']:.2f} s{skipped}"
    )
