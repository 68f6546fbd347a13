"""Several runs side by side: how they stand, what their contracts differ in, metrics, cost and last models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from flcore.reports.number_text import column_format, seconds_format
from flcore.reports.participation import participation
from flcore.reports.reported_run import ReportedRun, contract_leaves, rounds_text, state_text
from flcore.reports.series import Points, metric_names, metric_points, round_seconds
from flcore.text import bytes_text, counted, printable

NONE = "\u2013"
"""The cell of a run that has no such value."""

MAX_METRICS, MAX_DIFFERENCES = 12, 60
DIGEST_CHARACTERS = 12


@dataclass(frozen=True)
class Row:
    """A row of a comparison: a group, a name, and the text of each run.

    Attributes:
        group: "run", "metrics", "cost", "model" or "contract".
        name: What it shows.
        cells: One text for each run; `NONE` where a run has no such value.
        is_number: Whether the texts are numbers, which are aligned to the right.
    """

    group: str
    name: str
    cells: Sequence[str]
    is_number: bool = False

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        labels: The runs' names, each once.
        runs: The runs, in the same order.
        rows: The rows of the table.
        notes: What cannot be compared, and what was left out.
    """

    labels: Sequence[str]
    runs: Sequence[ReportedRun]
    rows: Sequence[Row]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values: by run, its numbers; then the differences of the contracts."""
        return {
            "runs": [_run_json(label, run) for label, run in zip(self.labels, self.runs, strict=True)],
            "contract_differences": {
                key: dict(zip(self.labels, values, strict=True)) for key, values in differing_keys(self.runs).items()
            },
            "notes": list(self.notes),
        }


def compare_runs(runs: Sequence[ReportedRun]) -> Comparison:
    """Compare runs, as far as they have something in common. Runs of different jobs are compared, and it is said."""
    rows = [*_run_rows(runs), *_metric_rows(runs), *_cost_rows(runs), *_model_rows(runs), *_contract_rows(runs)]
    return Comparison(unique_labels(runs), runs, rows, list(_notes(runs)))


def unique_labels(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the names of the runs' directories; with the run's id where a name occurs twice."""
    names = [run.label for run in runs]
    labels = [name if names.count(name) == 1 else f"{name} {run.id}" for name, run in zip(names, runs, strict=True)]
    return [label if labels.count(label) == 1 else f"{label} ({index})" for index, label in enumerate(labels, 1)]


def shared_metrics(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Return kind and name of each metric that at least two runs have."""
    found = [
        (kind, name)
        for kind in ("validate", "train")
        for name in dict.fromkeys(name for run in runs for name in metric_names(run.history))
    ]
    return [
        (kind, name) for kind, name in found if sum(bool(metric_points(run.history, kind, name)) for run in runs) > 1
    ]


def metric_title(kind: str, name: str) -> str:
    """Return the title of a metric of `kind` "train" or "validate".

    >>> metric_title("validate", "accuracy")
    'validation accuracy'
    """
    return f"{'validation' if kind == 'validate' else 'training'} {printable(name, 40)}"


def differing_keys(runs: Sequence[ReportedRun]) -> dict[str, list[str]]:
    """Return the keys in which known contracts differ, with the JSON of each run's value, or `NONE`."""
    leaves = [None if run.contract is None else contract_leaves(run.contract) for run in runs]
    known = [each for each in leaves if each is not None]
    keys = sorted({key for each in known for key in each})
    differing = [key for key in keys if len({each.get(key, NONE) for each in known}) > 1]
    return {key: [NONE if each is None else each.get(key, NONE) for each in leaves] for key in differing}


def _run_rows(runs: Sequence[ReportedRun]) -> Iterator[Row]:
    yield Row("run", "job", [run.job for run in runs])
    yield Row("run", "state", [state_text(run) for run in runs])
    yield Row("run", "begun (UTC)", [run.started[:16].replace("T", " ") for run in runs])
    yield Row("run", "flcore", [run.audit.version or NONE for run in runs])
    yield Row("run", "contract", [run.fingerprint[:DIGEST_CHARACTERS] for run in runs])
    yield Row("run", "code", [run.audit.code_digest[:DIGEST_CHARACTERS] or NONE for run in runs])
    yield Row("run", "rounds", [rounds_text(run).partition(" round")[0] for run in runs], is_number=True)
    skipped = [str(sum(bool(record.skipped) for record in run.history)) for run in runs]
    if any(count != "0" for count in skipped):
        yield Row("run", "rounds skipped", skipped, is_number=True)
    clients = [participation(run) for run in runs]
    counted = [f"{sum(bool(each.counted) for each in found.values())} of {len(found)}" for found in clients]
    yield Row("run", "clients that counted", counted, is_number=True)


def _metric_rows(runs: Sequence[ReportedRun]) -> Iterator[Row]:
    for kind, name in shared_metrics(runs)[:MAX_METRICS]:
        points = [metric_points(run.history, kind, name) for run in runs]
        form = column_format(value for each in points for _, value in each)
        title = metric_title(kind, name)
        yield Row("metrics", f"{title}, last", [form(each[-1][1]) if each else NONE for each in points], is_number=True)
        direction = _direction(runs, name) if kind == "validate" else ""
        if direction:
            cells = [_best_text(each, direction, form) for each in points]
            yield Row("metrics", f"{title}, best ({direction})", cells, is_number=True)
        else:
            cells = [_range_text(each, form) for each in points]
            yield Row("metrics", f"{title}, range", cells, is_number=True)


def _direction(runs: Sequence[ReportedRun], name: str) -> str:
    """Return "max" or "min", if the contracts with this metric as `server.best` agree on it; else ""."""
    found = {run.best_metric[1] for run in runs if run.best_metric is not None and run.best_metric[0] == name}
    return found.pop() if len(found) == 1 else ""


def best_point(points: Points, direction: str) -> tuple[int, float]:
    """Return the first point with the best value."""
    return (max if direction == "max" else min)(points, key=lambda point: point[1])


def _best_text(points: Points, direction: str, form: Callable[[float], str]) -> str:
    if not points:
        return NONE
    number, value = best_point(points, direction)
    return f"{form(value)} (round {number})"


def _range_text(points: Points, form: Callable[[float], str]) -> str:
    values = [value for _, value in points]
    return f"{form(min(values))} to {form(max(values))}" if values else NONE


def _cost_rows(runs: Sequence[ReportedRun]) -> Iterator[Row]:
    for key, name in (("bytes_sent", "bytes sent"), ("bytes_received", "bytes received")):
        totals = [sum(getattr(record, key) for record in run.history) for run in runs]
        yield Row("cost", name, [bytes_text(total) for total in totals], is_number=True)
    seconds = [round_seconds(run.history) for run in runs]
    whole_of = seconds_format(sum(each) for each in seconds)
    yield Row("cost", "time in rounds", [whole_of(sum(each)) for each in seconds], is_number=True)
    middles = [median(each) if each else None for each in seconds]
    one_of = seconds_format(each for each in middles if each is not None)
    yield Row("cost", "median of a round", [NONE if each is None else one_of(each) for each in middles], is_number=True)


def _model_rows(runs: Sequence[ReportedRun]) -> Iterator[Row]:
    sizes = [NONE if run.model.bytes is None else bytes_text(run.model.bytes) for run in runs]
    yield Row("model", "size of the last model", sizes, is_number=True)
    digests = [run.model.digest.rpartition(":")[2][:DIGEST_CHARACTERS] for run in runs]
    yield Row("model", "digest of the last model", [each or NONE for each in digests])


def _contract_rows(runs: Sequence[ReportedRun]) -> Iterator[Row]:
    for key, cells in list(differing_keys(runs).items())[:MAX_DIFFERENCES]:
        yield Row("contract", key, cells)


def _notes(runs: Sequence[ReportedRun]) -> Iterator[str]:
    jobs = list(dict.fromkeys(run.job for run in runs))
    if len(jobs) > 1:
        yield f"These are runs of different jobs ({', '.join(jobs)}). What they have in common is compared."
    elif len({run.fingerprint for run in runs}) == 1 and _is_same([run.audit.code_digest for run in runs]):
        yield "The runs have the same contract and the same code."
    shared = shared_metrics(runs)
    if not shared:
        yield "No two of the runs have a metric in common."
    elif len(shared) > MAX_METRICS:
        yield f"Left out: {counted(len(shared) - MAX_METRICS, 'more metric')}."
    unknown = [label for label, run in zip(unique_labels(runs), runs, strict=True) if run.contract is None]
    if unknown:
        yield f"The contract is not in the directory of {', '.join(unknown)}: its keys are not compared."
    more = len(differing_keys(runs)) - MAX_DIFFERENCES
    if more > 0:
        yield f"Left out: {counted(more, 'more difference')} of the contracts (--json has all)."
    if _is_same([run.model.digest for run in runs]):
        yield "The last models are the same, byte for byte."


def _is_same(digests: Sequence[str]) -> bool:
    """Whether all digests are known, and the same."""
    return all(digests) and len(set(digests)) == 1


def _run_json(label: str, run: ReportedRun) -> dict[str, Any]:
    metrics = {
        f"{kind}.{name}": {
            "last": points[-1][1],
            "lowest": best_point(points, "min")[1],
            "highest": best_point(points, "max")[1],
        }
        for kind in ("train", "validate")
        for name in metric_names(run.history)
        if (points := metric_points(run.history, kind, name))
    }
    return {
        "label": label,
        "id": run.id,
        "job": run.job,
        "state": str(run.state),
        "reason": run.reason,
        "started": run.started,
        "version": run.audit.version,
        "fingerprint": run.fingerprint,
        "code_digest": run.audit.code_digest,
        "rounds": len(run.history),
        "total_rounds": run.total_rounds,
        "metrics": metrics,
        "bytes_sent": sum(record.bytes_sent for record in run.history),
        "bytes_received": sum(record.bytes_received for record in run.history),
        "seconds": sum(round_seconds(run.history)),
        "model": {"file": run.model.file, "bytes": run.model.bytes, "digest": run.model.digest},
    }
