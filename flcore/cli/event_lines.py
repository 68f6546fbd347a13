"""Rounds and warnings as lines of text."""

from flcore.job.contract import Contract
from flcore.server.events import NoBestModel, RoundSkipped, TaskRetried, WaitingForClients
from flcore.server.history import RoundRecord
from flcore.text import printable

MAX_METRICS_SHOWN = 8
"""The most metrics in a line."""

MAX_NAMES_SHOWN = 10
"""The most names in a line; the rest is counted."""


def round_line(record: RoundRecord, contract: Contract) -> str:
    """Return a round's summary in one line."""
    metrics = {**record.train, **record.validate}
    skipped = ", skipped" if record.skipped else ""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:MAX_METRICS_SHOWN])
    shown += f" and {len(metrics) - MAX_METRICS_SHOWN} more" if len(metrics) > MAX_METRICS_SHOWN else ""
    traffic = (record.bytes_sent + record.bytes_received) / 1e6
    return (
        f"round {record.round}/{contract.server.rounds}: {len(record.updates)} of {len(record.sampled)} clients, "
        f"{shown or 'no metrics'}, {traffic:,.1f} MB, {record.seconds['round']:.2f} s{skipped}"
    )


def warning_line(event: WaitingForClients | TaskRetried | RoundSkipped | NoBestModel) -> str:
    """Return a warning event in one line."""
    match event:
        case WaitingForClients():
            limit = "as long as it takes" if event.timeout_s is None else f"for {event.timeout_s:g} s at most"
            missing = f"; not there: {_shorten(event.missing)}" if event.missing else ""
            return f"waiting for clients, {limit}: {event.connected} of {event.needed} are connected{missing}"
        case TaskRetried():
            retry = f"retry {event.attempt} of {event.attempts}"
            return (
                f"round {event.round}: {event.task} has {event.answers} of {event.quorum} answers that it needs; "
                f"asking {_shorten(event.missing)} again in {event.delay_s:g} s, {retry}"
            )
        case RoundSkipped():
            return f"round {event.round} is skipped, the model stays as it is: {event.reason}"
        case NoBestModel():
            reported = _shorten(event.reported) or "none"
            return f"no best model in this round: no client reported {event.metric!r}; reported: {reported}"


def _shorten(names: tuple[str, ...]) -> str:
    shown = [printable(name, 64) for name in names[:MAX_NAMES_SHOWN]]
    return ", ".join([*shown, f"{len(names) - len(shown)} more"] if len(names) > len(shown) else shown)
