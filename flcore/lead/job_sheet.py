"""A job as a short sheet of text."""

from collections.abc import Iterator

from flcore.federation.messages import JobDetails, JobSummary, SiteProgress
from flcore.number_text import metrics_text
from flcore.text import counted, printable

KEY_WIDTH = 13
MAX_REASON_CHARACTERS = 1_000
MAX_NAME_CHARACTERS = 64
MAX_SITES_SHOWN = 1_000


def sheet_lines(details: JobDetails) -> Iterator[str]:
    """Yield the lines of a job's sheet: how it stands and why, what it consists of, its sites."""
    summary = details.summary
    # Only the sites compare the key: they know the leads' keys.
    signed = f"signed, with a key that is called {details.signer}" if details.signer else "not signed"
    rows = {
        "job": f"{summary.name}, contract {details.contract_fingerprint}",
        "state": state_text(summary),
        "reason": printable(summary.reason, MAX_REASON_CHARACTERS),
        "lead": summary.lead,
        "submitted": summary.submitted,
        "started": summary.started,
        "ended": summary.ended,
        "pack": f"{details.pack_digest}, {signed}".removeprefix(", "),
        "code": details.code_digest,
        "changes": ", ".join(f"{key} = {value}" for key, value in details.changes.items()),
        "quorum": counted(details.quorum, "client"),
        "metrics": metrics_text(details.metrics),
    }
    yield first_line(summary.id)
    for key, text in rows.items():
        if text:
            yield f"{key:<{KEY_WIDTH}}{printable(text, MAX_REASON_CHARACTERS)}"
    yield from _site_lines(details)


def first_line(job_id: str) -> str:
    """Return the line with which a job's sheet begins."""
    return f"{'id':<{KEY_WIDTH}}{job_id}"


def state_text(summary: JobSummary) -> str:
    """Return state and rounds.

    >>> state_text(JobSummary(id="digits-1", name="digits", state="running", round=3, rounds=20))
    'running, 3 of 20 rounds are over'
    """
    if summary.state == "queued":
        return f"queued, {counted(summary.rounds, 'round')}"
    verb = "is" if summary.rounds == 1 else "are"
    return f"{summary.state}, {summary.round} of {counted(summary.rounds, 'round')} {verb} over"


def news_line(summary: JobSummary) -> str:
    """Return a job that is followed in one line: state, rounds, metrics of the last round, and the reason.

    >>> job = JobSummary(id="digits-1", name="digits", state="running", round=3, rounds=20, metrics={"loss": 0.25})
    >>> news_line(job)
    'digits-1: running, 3 of 20 rounds are over, loss 0.25'
    """
    metrics = f", {metrics_text(summary.metrics)}" if summary.metrics and summary.state != "queued" else ""
    reason = f": {printable(summary.reason, MAX_REASON_CHARACTERS)}" if summary.reason else ""
    return f"{summary.id}: {state_text(summary)}{metrics}{reason}"


def progress_text(progress: SiteProgress) -> str:
    """Return how far a site's task is.

    >>> progress_text(SiteProgress(task="train", round=3, done=40, total=100))
    'train of round 3: 40/100'
    """
    task = printable(progress.task, MAX_NAME_CHARACTERS)
    return f"{task} of round {progress.round}: {progress.done:g}/{progress.total:g}"


def _site_lines(details: JobDetails) -> Iterator[str]:
    names = sorted({*details.sites, *details.progress})
    shown = names[:MAX_SITES_SHOWN]
    width = max((len(printable(name, MAX_NAME_CHARACTERS)) for name in shown), default=0)
    for number, name in enumerate(shown):
        parts = [printable(details.sites[name], MAX_REASON_CHARACTERS)] if name in details.sites else []
        if rounds := details.answered.get(name):
            parts.insert(0, f"answered {rounds} {'round' if rounds == 1 else 'rounds'}")
        parts += [progress_text(details.progress[name])] if name in details.progress else []
        key = "sites" if number == 0 else ""
        yield f"{key:<{KEY_WIDTH}}{printable(name, MAX_NAME_CHARACTERS):<{width}}  {', '.join(parts)}"
    if left := len(names) - len(shown) + details.more_sites:
        yield f"{'':<{KEY_WIDTH}}and {left:,} more {'site' if left == 1 else 'sites'} (--json)"
