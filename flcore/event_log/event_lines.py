"""The line of each event of a run: its level, and its text for people. A new event needs one row in `RUN_LINES`."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flcore_transport import UNKNOWN_SESSION

from flcore.job.contract import Contract
from flcore.number_text import bytes_text, metrics_text
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    CallRefused,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    ClientRevoked,
    HistoryRestored,
    InvalidMetrics,
    JoinRefused,
    ModelPublished,
    NoBestModel,
    RoundFinished,
    RoundSkipped,
    RuleBegan,
    RuleEnded,
    RunContinued,
    RunEnd,
    RunEnded,
    RunEnding,
    RunStarted,
    StoppedEarly,
    StorageOpened,
    TaskAnswered,
    TaskRetried,
    TaskSent,
    UpdatesFolded,
    WaitBegan,
    WaitEnded,
    WaitingForClients,
)
from flcore.server.history import RoundRecord
from flcore.server.transfer_events import DownloadBegan, DownloadEnded, UploadBegan, UploadEnded, UploadQueued
from flcore.text import counted, did_you_mean, printable

MAX_REASON_CHARACTERS = 2_000
"""The most characters of a reason in a line."""

MAX_NAMES_SHOWN = 10
"""The most names in a line; the rest is counted."""


def round_line(record: RoundRecord, contract: Contract) -> str:
    """Return a round's summary in one line. A round without training, as of `fed_eval`, has no count of clients."""
    shown = metrics_text(record.metrics)
    skipped = ", skipped" if record.skipped else ""
    traffic = bytes_text(record.bytes_sent + record.bytes_received)
    clients = f"{len(record.updates)} of {counted(len(record.sampled), 'client')}, " if record.sampled else ""
    return (
        f"round {record.round}/{contract.server.rounds}: {clients}"
        f"{shown or 'no metrics'}, {traffic}, {record.seconds['round']:.2f} s{skipped}"
    )


def warning_line(
    event: RunContinued | WaitingForClients | TaskRetried | RoundSkipped | StoppedEarly | NoBestModel,
) -> str:
    """Return an event that a person may care about in one line."""
    match event:
        case RunContinued():
            over = "is over" if event.rounds == 1 else "are over"
            return f"going on with run {event.run}: {event.rounds} of its {counted(event.total_rounds, 'round')} {over}"
        case WaitingForClients():
            limit = "as long as it takes" if event.timeout_s is None else f"for {event.timeout_s:g} s at most"
            missing = f"; not there: {_shorten(event.missing)}" if event.missing else ""
            return f"waiting for clients, {limit}: {event.connected} of {event.needed} are connected{missing}"
        case TaskRetried():
            retry = f"retry {event.attempt} of {event.attempts}"
            needed = counted(event.quorum, "answer")
            return (
                f"round {event.round}: {event.task} has {event.answers} of {needed} that it needs; "
                f"asking {_shorten(event.missing)} again in {event.delay_s:g} s, {retry}"
            )
        case RoundSkipped():
            return f"round {event.round} is skipped, the model stays as it is: {event.reason}"
        case StoppedEarly():
            return f"the run ends early, after round {event.round}: {event.reason}"
        case NoBestModel():
            reported = _shorten(event.reported) or "none"
            nearest = did_you_mean(event.metric, event.reported)
            return f"no best model in this round: no client reported {event.metric!r}; reported: {reported}{nearest}"


def refused_call_line(event: CallRefused) -> str:
    """Return the line on a refused call. Clients whose server was restarted make such calls, and join again."""
    client = printable(event.client, 64)
    if event.kind == UNKNOWN_SESSION:
        return f"{client or 'a client'} has no session here, as after a restart of the server; told to join again"
    return f"refused a call{f' of {client}' if client else ''}: {printable(event.reason, MAX_REASON_CHARACTERS)}"


def _shorten(names: tuple[str, ...]) -> str:
    shown = [printable(name, 64) for name in names[:MAX_NAMES_SHOWN]]
    return ", ".join([*shown, f"{len(names) - len(shown)} more"] if len(names) > len(shown) else shown)


@dataclass(frozen=True)
class EventLine:
    """How a type of event is logged.

    Attributes:
        level: Returns the level of `logging`, which may depend on the event.
        text: Returns the text. The log makes it printable, and bounds it.
        is_in_round: Whether the event belongs to the present round, which it may not name itself.
        fields: Returns the event's fields for a line of JSON.
    """

    level: Callable[[Any], int]
    text: Callable[[Any], str]
    is_in_round: bool = False
    fields: Callable[[Any], dict[str, Any]] = asdict


def debug(_: object) -> int:
    """Return the level of what happens in every round, for each client."""
    return logging.DEBUG


def info(_: object) -> int:
    """Return the level of what happens in the course of a run."""
    return logging.INFO


def warning(_: object) -> int:
    """Return the level of what costs a client or a round something."""
    return logging.WARNING


def join_refused_line(event: JoinRefused) -> str:
    """Return the line on a join that was refused."""
    reason = "; ".join(line.strip() for line in event.reason.splitlines()).replace(":; ", ": ")
    return f"turned away: {reason}"


def call_refused_level(event: CallRefused) -> int:
    """Return the level of a refused call. The audit log has all of them."""
    if event.kind != UNKNOWN_SESSION:
        return logging.WARNING
    return logging.INFO if event.client else logging.DEBUG


def _ignored_metrics_line(event: InvalidMetrics) -> str:
    odd = "; ".join(f"{name}: {why}" for name, why in list(event.metrics.items())[:MAX_NAMES_SHOWN])
    return f"{event.client}: {event.task} counts; these metrics were ignored: {odd}"


def _refused_answer_line(event: AnswerRefused) -> str:
    task = event.task or "a task that is not open"
    return f"refused an answer of {event.client} to {task} ({event.kind}): {event.reason}"


def first_refusal_line(event: AnswerRefused) -> str:
    """Return the line on the first refusal of a kind of a client, for people that see no others."""
    reason = printable(event.reason, MAX_REASON_CHARACTERS)
    return f"round {event.round}: {printable(event.client, 64)} was refused in {event.task or 'no open task'}: {reason}"


def _published_line(event: ModelPublished) -> str:
    best = ", the best so far" if event.is_best else ""
    return f"published {event.file} of round {event.round}, {bytes_text(event.tensor_bytes)}{best}"


ENDS: Mapping[RunEnd, str] = {
    "done": "is over",
    "failed": "has failed",
    "aborted": "was aborted",
    "stopped": "was stopped",
    "interrupted": "was interrupted",
}
"""The words for the end of a run, which each have its name in `flcore status`."""

RUN_LINES: Mapping[type, EventLine] = {
    RunStarted: EventLine(
        info, lambda e: f"run {e.run} of {e.job}: contract {e.contract_fingerprint[:12]}, flcore {e.version}"
    ),
    RunContinued: EventLine(info, warning_line),
    HistoryRestored: EventLine(
        debug,
        lambda e: f"the history has {counted(len(e.records), 'round')}",
        fields=lambda e: {"records": len(e.records)},  # each has been logged when it was written
    ),
    StorageOpened: EventLine(
        debug,
        lambda e: f"a budget of {e.budget_bytes >> 20:,} MiB, {e.staging_budget_bytes >> 20:,} MiB of it for updates",
        fields=lambda e: {
            "budget_bytes": e.budget_bytes,
            "staging_budget_bytes": e.staging_budget_bytes,
            "directory": None if e.directory is None else str(e.directory),
        },
    ),
    RunEnding: EventLine(debug, lambda _: "the run ends: its clients are told"),
    RunEnded: EventLine(
        lambda e: logging.ERROR if e.failed else logging.INFO,
        lambda e: f"the run {ENDS[e.end]}: {e.reason}",
    ),
    ClientJoined: EventLine(info, lambda e: f"{e.client} joined ({e.connected} connected)"),
    ClientLeft: EventLine(info, lambda e: f"{e.client} left ({e.connected} connected)"),
    JoinRefused: EventLine(warning, join_refused_line),
    CallRefused: EventLine(call_refused_level, refused_call_line),
    ClientRevoked: EventLine(warning, lambda e: f"ended the session of {e.client}: {e.reason}"),
    TaskSent: EventLine(debug, lambda e: f"round {e.round}: {e.task} is sent to {counted(e.client_count, 'client')}"),
    DownloadBegan: EventLine(debug, lambda e: f"{e.client} downloads the model for {e.task}"),
    DownloadEnded: EventLine(
        debug, lambda e: f"{e.client} has the model for {e.task}: {bytes_text(e.sent_bytes)}, and works on it"
    ),
    UploadQueued: EventLine(debug, lambda e: f"{e.client} has done {e.task}, and waits to upload its answer"),
    UploadBegan: EventLine(debug, lambda e: f"{e.client} uploads its answer to {e.task}"),
    UploadEnded: EventLine(
        debug, lambda e: f"{e.client} has uploaded its answer to {e.task}: {bytes_text(e.received_bytes)}"
    ),
    UpdatesFolded: EventLine(
        debug,
        lambda e: f"round {e.round}: in the total, {counted(len(e.clients), 'update')}: {_shorten(e.clients)}",
    ),
    TaskAnswered: EventLine(
        debug, lambda e: f"{e.client} has answered {e.task}: {bytes_text(e.received_bytes)}, weight {e.weight:g}"
    ),
    AnswerRefused: EventLine(debug, _refused_answer_line),  # at INFO, the line of `ClientFailed` tells of it
    ClientFailed: EventLine(warning, lambda e: f"{e.client} failed in {e.task}: {e.reason}", is_in_round=True),
    InvalidMetrics: EventLine(warning, _ignored_metrics_line, is_in_round=True),
    WaitBegan: EventLine(debug, lambda _: "the workflow waits"),
    WaitEnded: EventLine(debug, lambda _: "the workflow goes on"),
    RuleBegan: EventLine(debug, lambda e: f"the job's rule is asked about the update of {e.client}"),
    RuleEnded: EventLine(debug, lambda e: f"the job's rule has answered about the update of {e.client}"),
    WaitingForClients: EventLine(info, warning_line),
    TaskRetried: EventLine(warning, warning_line),
    RoundSkipped: EventLine(warning, warning_line),
    StoppedEarly: EventLine(info, warning_line),
    NoBestModel: EventLine(warning, warning_line, is_in_round=True),
    BytesTransferred: EventLine(
        debug, lambda e: f"transferred: {bytes_text(e.sent)} sent, {bytes_text(e.received)} received"
    ),
    ModelPublished: EventLine(debug, _published_line),
    TaskProgress: EventLine(debug, str),
}
"""Each event of a run but `RoundFinished`, whose line names the number of all rounds."""


def lines_of_run(contract: Contract) -> dict[type, EventLine]:
    """Return the lines of the events of a contract's run."""
    finished = EventLine(
        info,
        lambda e: round_line(e.record, contract),
        fields=lambda e: {"record": asdict(e.record), "round": e.record.round},
    )
    return {**RUN_LINES, RoundFinished: finished}
