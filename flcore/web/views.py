"""The values that the page receives, as JSON. They are the same for everybody who may read the page."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from flcore.server.history import RoundRecord
from flcore.status.board import StatusBoard
from flcore.status.job_status import JobStatus
from flcore.status.timeline import PHASES
from flcore.text import printable
from flcore.version import __version__
from flcore.web.sources import Source

MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS = 64, 300

MAX_ROUNDS = 500
"""The most rounds of a reply. The page asks for those after them."""

MAX_METRICS, MAX_LEFT_OUT = 50, 200
"""The most metrics of a round, and the most clients without an answer that it names. Clients give the names."""

ANSWER_SECONDS, ANSWER_MEGABYTES = "answer (s)", "update (MB)"
"""The measures of a site by round that each job has, beside the metrics of its clients."""


def to_bytes(value: Any) -> bytes:
    """Return a value as JSON. Numbers that are not finite are null: JavaScript reads no others."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":")).encode()


def overview(source: Source) -> dict[str, Any]:
    """Return the jobs in short, and the sites."""
    return {
        "version": __version__,
        "jobs": [_job_line(key, status) for key, status in source.jobs()],
        "sites": [site.to_json() for site in source.sites()],
    }


def full_status(source: Source) -> dict[str, Any]:
    """Return all that is known of the jobs and the sites, for machines."""
    return {
        "version": __version__,
        "jobs": [{"key": key, **status.to_json()} for key, status in source.jobs()],
        "sites": [site.to_json() for site in source.sites()],
    }


def job_view(source: Source, key: str) -> dict[str, Any] | None:
    """Return a job with its clients, and with the timeline of its present round while it runs."""
    board = source.board(key)
    rounds = () if board is None else board.timeline_rounds()
    shown = None if board is None or not rounds else timeline_view(board, rounds[-1])
    status = source.job(key)  # after the timeline: a client that is refused there has its reason here
    if status is None:
        return None
    values = status.to_json()
    del values["last_rounds"]  # the page asks for the rounds that it does not have yet
    return {"key": key, "is_over": status.is_over, **values, "timeline": shown, "timeline_rounds": rounds}


def timeline_view(board: StatusBoard, round_number: int) -> dict[str, Any]:
    """Return the phases of a round: each is the number of the client, of the task, of the phase, and its times.

    Times are in seconds after `begin_s`. The end of a phase that lasts is null.
    """
    phases = board.timeline(round_number)
    begin = min((phase.begin_s for phase in phases), default=0.0)
    clients, tasks = dict[str, int](), dict[str, int]()
    spans = [
        (
            clients.setdefault(printable(phase.client, MAX_NAME_CHARACTERS), len(clients)),
            tasks.setdefault(printable(phase.task, MAX_NAME_CHARACTERS), len(tasks)),
            PHASES.index(phase.phase),
            round(phase.begin_s - begin, 3),
            None if phase.end_s is None else round(phase.end_s - begin, 3),
        )
        for phase in phases
    ]
    return {
        "round": round_number,
        "begin_s": begin,
        "phases": PHASES,
        "clients": list(clients),
        "tasks": list(tasks),
        "spans": spans,
    }


def rounds_view(records: Sequence[RoundRecord], after: int) -> dict[str, Any]:
    """Return the rounds after one, without the values of each site; `MAX_ROUNDS` at most."""
    return {"rounds": [_round_line(record) for record in _after(records, after)]}


def sites_view(records: Sequence[RoundRecord], metric: str, after: int) -> dict[str, Any]:
    """Return a metric of each site by round: a list for each site, with null where a round has no value.

    It has `MAX_ROUNDS` rounds at most, as `rounds_view`.
    """
    shown = _after(records, after)
    sites = dict[str, list[float | None]]()
    for index, record in enumerate(shown):
        for client, part in record.updates.items():
            value = {ANSWER_SECONDS: part.seconds, ANSWER_MEGABYTES: part.bytes / 1e6}.get(
                metric, part.metrics.get(metric)
            )
            if value is not None:
                name = printable(client, MAX_NAME_CHARACTERS)
                sites.setdefault(name, [None] * len(shown))[index] = _rounded(value)
    return {"metric": metric, "rounds": [record.round for record in shown], "sites": sites}


def _job_line(key: str, status: JobStatus) -> dict[str, Any]:
    names = ("job", "state", "reason", "round", "rounds", "rounds_over", "connected", "megabytes_per_s")
    line = {name: getattr(status, name) for name in (*names, "time_left_s", "started_s", "ended_s")}
    return {"key": key, "is_over": status.is_over, **line, "refusals": sum(status.refusals.values())}


def _after(records: Sequence[RoundRecord], after: int) -> list[RoundRecord]:
    return list(islice((record for record in records if record.round > after), MAX_ROUNDS))


def _round_line(record: RoundRecord) -> dict[str, Any]:
    # Those of the most clients come first: one client that sends hundreds of names must not push out the others'.
    reported = Counter(name for part in record.updates.values() for name in part.metrics)
    train = sorted(record.train, key=reported.__getitem__, reverse=True)
    failed = ((client, task, reason) for task, each in record.failed.items() for client, reason in each.items())
    return {
        "round": record.round,
        "sampled": len(record.sampled),
        "updates": len(record.updates),
        "left_out": len({client for reasons in record.failed.values() for client in reasons}),
        "failed": [
            (printable(client, MAX_NAME_CHARACTERS), printable(task, MAX_NAME_CHARACTERS), _short(reason))
            for client, task, reason in islice(failed, MAX_LEFT_OUT)
        ],
        "site_metrics": [
            ANSWER_SECONDS,
            ANSWER_MEGABYTES,
            *sorted(name for name, _ in reported.most_common(MAX_METRICS)),
        ],
        "train": _metrics({name: record.train[name] for name in train}),
        "validate": _metrics(record.validate),
        "seconds": _metrics(record.seconds),
        "bytes_sent": record.bytes_sent,
        "bytes_received": record.bytes_received,
        "retries": record.asked_again,
        "is_best": record.is_best,
        "skipped": _short(record.skipped),
        "stopped": _short(record.stopped),
    }


def _metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in islice(metrics.items(), MAX_METRICS)}


def _rounded(value: float) -> float:
    """Return six digits of a number: more than a page of lines can show."""
    return float(f"{value:.6g}")


def _short(text: str) -> str:
    return printable(" ".join(text.split()), MAX_REASON_CHARACTERS)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
