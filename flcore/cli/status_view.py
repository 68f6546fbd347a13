"""The status of a job or of a federation as text: a heading and tables, for the plain and for the live view."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from flcore.number_text import bytes_text, duration_text, metrics_text, share_text
from flcore.status.job_status import ClientStatus, FederationStatus, JobStatus, ResourceStatus
from flcore.text import printable, utc_time

MAX_NAME_CHARACTERS, MAX_REASON_CHARACTERS = 40, 1_000
"""A reason is shown as a whole, as its cause is at its end: a status has 300 characters of it, before escaping."""

MAX_REFUSALS_SHOWN, MAX_ROUNDS_SHOWN = 5, 5

CLIENT_HEADING = ("client", "state", "task", "sent", "received", "MB/s", "seen", "refused", "reason")
ROUND_HEADING = ("round", "state", "clients", "seconds", "bytes", "metrics", "reason")


class Table(NamedTuple):
    """A table: its title, its heading, and its rows. Cells are safe to print."""

    title: str
    heading: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def job_heading(status: JobStatus) -> Iterator[tuple[str, str]]:
    """Yield the names and the values of a job's heading."""
    name = printable(status.job, MAX_NAME_CHARACTERS)
    yield "job", name + (f", {printable(status.id, 80)}" if status.id and status.id != status.job else "")
    yield "state", state_text(status)
    if not status.is_over and status.task:
        task = printable(status.task, MAX_NAME_CHARACTERS)
        yield "task", f"{task}: {status.answered} of {status.asked} answers are in"
    yield "rounds", f"{status.rounds_over} of {status.rounds or '?'} are over" + _time_left(status)
    if status.bytes_sent or status.bytes_received:
        rate = "" if status.is_over else f", {status.megabytes_per_s:,.1f} MB/s"
        sent, received = bytes_text(status.bytes_sent), bytes_text(status.bytes_received)
        yield "bytes", f"{sent} sent, {received} received{rate}"
    if status.metrics:
        yield "metrics", metrics_text(status.metrics)
    if status.resources is not None:
        yield from _resources(status.resources)
    if status.refusals:
        yield "refused", _counts(status.refusals)


def job_tables(status: JobStatus) -> Iterator[Table]:
    """Yield the tables of a job: its clients, its last refusals, its last rounds."""
    if status.clients:
        rows = [_client_cells(client, status.updated_s) for client in status.clients]
        left_out = f" ({status.clients_left_out:,} more are left out)" if status.clients_left_out else ""
        yield Table(f"clients{left_out}", CLIENT_HEADING, rows)
    if status.last_refusals:
        shown = status.last_refusals[-MAX_REFUSALS_SHOWN:]
        refusals = [(utc_time(each.at_s), _name(each.client), _name(each.kind), _reason(each.reason)) for each in shown]
        yield Table("last refusals", ("at", "client", "kind", "reason"), refusals)
    if status.last_rounds:
        rounds = [
            (
                str(each.round),
                each.state,
                f"{each.updates} of {each.sampled}" if each.state != "running" else "-",
                f"{each.seconds['round']:.1f}" if "round" in each.seconds else "-",
                bytes_text(each.bytes_sent + each.bytes_received) if each.state != "running" else "-",
                metrics_text({**each.train, **each.validate}, 4),
                _reason(each.reason),
            )
            for each in status.last_rounds[-MAX_ROUNDS_SHOWN:]
        ]
        yield Table("last rounds", ROUND_HEADING, rounds)


def federation_tables(status: FederationStatus) -> Iterator[Table]:
    """Yield the tables of a federation: its jobs and its sites."""
    jobs = [
        (
            printable(job.id, 80),
            job.state,
            f"{job.rounds_over}/{job.rounds}",
            str(job.connected) if not job.is_over and job.state != "queued" else "-",
            f"{job.megabytes_per_s:,.1f}" if not job.is_over else "-",
            "-" if job.time_left_s is None else duration_text(job.time_left_s),
            sum_text(job.refusals),
            _reason(job.reason),
        )
        for job in status.jobs
    ]
    yield Table("jobs", ("id", "state", "rounds", "clients", "MB/s", "left", "refused", "reason"), jobs)
    if status.sites:
        sites = [
            (_name(site.name), "connected" if site.is_connected else "away", ", ".join(map(_name, site.jobs)))
            for site in status.sites
        ]
        yield Table("sites", ("site", "state", "jobs"), sites)


def state_text(status: JobStatus) -> str:
    """Return the state of a job, with the reason."""
    reason = f": {_reason(status.reason)}" if status.reason else ""
    if status.state == "running" and status.round > status.rounds_over:
        return f"running, round {status.round}{reason}"
    return f"{status.state}{reason}"


def plain_lines(heading: Sequence[tuple[str, str]], tables: Sequence[Table]) -> Iterator[str]:
    """Yield a heading and tables as lines of text, with aligned columns."""
    for name, value in heading:
        yield f"{name:<9}{value}"
    for table in tables:
        yield ""
        rows = [table.heading, *table.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(table.heading))]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if not table.rows:
            yield f"no {table.title}"


def sum_text(counts: Mapping[str, int]) -> str:
    """Return the sum of counts; "-" for none."""
    return str(sum(counts.values())) if counts else "-"


def _client_cells(client: ClientStatus, now: float) -> tuple[str, ...]:
    state: str = client.phase or "idle"
    if not client.is_connected:
        state = "never connected" if client.last_seen_s is None else "lost" if client.phase == "lost" else "away"
    elif client.progress is not None and client.phase == "training":
        state += f" {share_text(client.progress)}"
    return (
        _name(client.name),
        state,
        f"{_name(client.task)} {client.round}" if client.task else "-",
        bytes_text(client.bytes_sent),
        bytes_text(client.bytes_received),
        f"{client.megabytes_per_s:,.1f}" if client.megabytes_per_s else "-",
        "-" if client.last_seen_s is None else f"{duration_text(max(0.0, now - client.last_seen_s))} ago",
        _counts(client.refusals) or "-",
        _reason(client.last_reason),
    )


def _resources(resources: ResourceStatus) -> Iterator[tuple[str, str]]:
    resident = "" if resources.resident_bytes is None else f", {_mebibytes(resources.resident_bytes)} resident"
    staged = f"{_mebibytes(resources.staged_bytes)} of {_mebibytes(resources.staging_budget_bytes)}"
    yield "memory", f"{staged} for staged updates, budget {_mebibytes(resources.budget_bytes)}{resident}"
    if resources.disk_free_bytes is not None:
        total = "" if resources.disk_total_bytes is None else f" of {bytes_text(resources.disk_total_bytes)}"
        yield "disk", f"{bytes_text(resources.disk_free_bytes)}{total} are free"


def _time_left(status: JobStatus) -> str:
    return "" if status.time_left_s is None else f", about {duration_text(status.time_left_s)} left"


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {_name(kind)}" for kind, count in ordered)


def _name(text: str) -> str:
    return printable(text, MAX_NAME_CHARACTERS)


def _reason(text: str) -> str:
    return printable(text, MAX_REASON_CHARACTERS)


def _mebibytes(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.0f} MiB"
