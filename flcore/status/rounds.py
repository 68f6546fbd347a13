"""The rounds of a job that are over, in short, and the time that is left."""

from collections.abc import Sequence
from itertools import islice
from math import isfinite

from flcore.server.history import RoundRecord
from flcore.status.client_entry import short_reason
from flcore.status.job_status import JobStatus, RoundStatus

MAX_METRICS = 50
"""The most metrics of a round. Clients give their names."""

ROUNDS_ESTIMATED = 10
"""The rounds whose mean duration gives the estimate of the time left."""


def shown_metrics(record: RoundRecord) -> dict[str, float]:
    """Return the metrics of a round: those of training, and those of validation over them."""
    return _bounded(record.metrics)


def round_status(record: RoundRecord, begin: float | None) -> RoundStatus:
    """Return the status of a round that is over. `begin`: when it began, if this process has run it."""
    return RoundStatus(
        round=record.round,
        state="skipped" if record.skipped else "over",
        begin_s=begin,
        seconds=dict(record.seconds),
        sampled=len(record.sampled),
        updates=len(record.updates),
        failed=len(record.failed_clients),
        train=_bounded(record.train),
        validate=_bounded(record.validate),
        bytes_sent=record.bytes_sent,
        bytes_received=record.bytes_received,
        retries=record.asked_again,
        is_best=record.is_best,
        reason=short_reason("; ".join(filter(None, (record.skipped or record.stopped, _left_out(record))))),
    )


def time_left_s(status: JobStatus, records: Sequence[RoundRecord], begin: float | None, now: float) -> float | None:
    """Estimate the seconds to the end of a run: as if each round that is left took as long as the last ones did.

    Args:
        status: The job.
        records: The rounds that are over.
        begin: When the present round began.
        now: The time.

    Returns:
        The seconds, at least 0; None before a round is over, and for a run that is over.
    """
    seconds = [record.seconds["round"] for record in records[-ROUNDS_ESTIMATED:] if "round" in record.seconds]
    if status.is_over or not seconds:
        return None
    mean_s = sum(seconds) / len(seconds)
    is_in_round = begin is not None and status.round > status.rounds_over
    elapsed_s = min(now - begin, mean_s) if is_in_round and begin is not None else 0.0
    return max(0.0, mean_s * (status.rounds - status.rounds_over) - elapsed_s)


def _left_out(record: RoundRecord) -> str:
    reasons = {client: reason for failed in record.failed.values() for client, reason in failed.items()}
    return "; ".join(f"{client}: {reason}" for client, reason in reasons.items())


def _bounded(metrics: dict[str, float]) -> dict[str, float]:
    """Return the first metrics. Those that are not finite, as an average that overflows is, have no number in JSON."""
    return dict(islice(((name, value) for name, value in metrics.items() if isfinite(value)), MAX_METRICS))
