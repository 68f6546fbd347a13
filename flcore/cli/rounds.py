"""A round in one line, and what is the matter with it."""

from flcore.job.contract import Contract
from flcore.server.events import AskingAgain, NoBest, Skipped, Waiting
from flcore.server.history import RoundRecord
from flcore.text import printable

MOST_METRICS = 8
"""How many metrics a line shows."""

MOST_NAMED = 10
"""How many clients or metrics a line names before it counts the rest."""


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


def trouble_line(event: Waiting | AskingAgain | Skipped | NoBest) -> str:
    """Return what keeps a round from closing as it should, in one line."""
    match event:
        case Waiting():
            at_most = "as long as it takes" if event.timeout_s is None else f"for {event.timeout_s:g} s at most"
            return (
                f"waiting for clients, {at_most}: {event.connected} of {event.needed} are connected; "
                f"not there: {_names(event.missing)}"
            )
        case AskingAgain():
            attempt = f"attempt {event.attempt} of {event.attempts}"
            return (
                f"round {event.round}: {event.task} has {event.answers} of {event.quorum} answers that it needs; "
                f"asking {_names(event.missing)} again in {event.pause_s:g} s, {attempt}"
            )
        case Skipped():
            return f"round {event.round} is skipped, the model stays as it is: {event.reason}"
        case NoBest():
            reported = _names(event.reported) or "none"
            return f"no best model in this round: no client reported {event.metric!r}; reported: {reported}"


def _names(names: tuple[str, ...]) -> str:
    shown = [printable(name, 64) for name in names[:MOST_NAMED]]
    return ", ".join([*shown, f"{len(names) - len(shown)} more"] if len(names) > len(shown) else shown)
