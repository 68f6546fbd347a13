"""The report of a run: one self-contained HTML file."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from flcore.identity.files import replace_file
from flcore.model.atomic_replace import create_directory
from flcore.number_text import bytes_text, column_format, metric_text, seconds_format, seconds_text
from flcore.reports.chart_section import byte_section, metric_section, site_section, time_section
from flcore.reports.html_page import Cell, Column, Markup, folded, page, paragraph, section, table, text
from flcore.reports.participation import participation, refused_clients
from flcore.reports.participation_section import left_out_section, participation_section
from flcore.reports.reported_run import ReportedModel, ReportedRun, contract_leaves, rounds_text
from flcore.reports.series import metric_names, metric_points, round_seconds
from flcore.server.history import RoundRecord
from flcore.text import counted, utc_time
from flcore.version import __version__

MAX_ROUND_ROWS = 500
MAX_METRIC_COLUMNS = 8
MAX_CONTRACT_ROWS = 400
FRACTION = re.compile(r"\.\d+Z$")
"""The fraction of a second at the end of a time."""

MAX_OPEN_ROWS = 30
"""A table of at most so many rounds is not folded."""


def report_page(run: ReportedRun) -> str:
    """Return the report of a run as HTML. Text that clients wrote is escaped; what is left out is said."""
    return page(
        f"{run.job}: {run.state}",
        _head(run),
        metric_section(run),
        left_out_section(run),
        participation_section(run),
        site_section(run),
        time_section(run),
        byte_section(run),
        section("Rounds", _rounds(run)),
        section("Models and digests", _models(run), _digests(run)),
        section("Contract", _contract(run)),
        f"<footer>Made by flcore {text(__version__)} on {utc_time()} from history.jsonl, audit.jsonl and state.sqlite "
        "of the run. Bytes are in powers of 1000. Times are in UTC.</footer>",
    )


def write_page(path: Path, content: str) -> None:
    """Write a page. Its directory is created if missing; an earlier file is replaced atomically."""
    create_directory(path.parent)
    replace_file(path, content.encode("utf-8"))


def _head(run: ReportedRun) -> str:
    lines = [f'<header><h1>{text(run.job)}</h1><span class="state {run.state}">{run.state}</span></header>']
    has_ended = run.audit.ended and run.state != "running"
    ended = f", ended {FRACTION.sub('Z', run.audit.ended)}" if has_ended else ""
    lines.append(paragraph(f"Run {run.id}, begun {run.started}{ended}.", "muted"))
    if run.reason:
        lines.append(paragraph(run.reason, "reason"))
    if run.state == "running":
        lines.append(
            paragraph("The run goes on. This report has the rounds that were over when it was made.", "reason")
        )
    if not run.history:
        lines.append(paragraph("No round has finished.", "reason"))
    tiles = "".join(
        f'<div><dt>{text(name)}</dt><dd><b>{text(value)}</b><span class="note">{text(note)}</span></dd></div>'
        for name, value, note in _tiles(run)
    )
    return "".join([*lines, f'<dl class="tiles">{tiles}</dl>'])


def _tiles(run: ReportedRun) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of the numbers at the top."""
    history = run.history
    skipped = sum(bool(record.skipped) for record in history)
    yield (
        "Rounds",
        rounds_text(run).removesuffix(" rounds").removesuffix(" round"),
        f"{skipped} skipped" if skipped else "",
    )
    clients = participation(run)
    idle = sum(not each.counted for each in clients.values())
    yield "Clients", f"{len(clients) - idle} of {len(clients)}", "with an answer that counted" if clients else ""
    for name in metric_names(history)[:2]:
        points = metric_points(history, "validate", name) or metric_points(history, "train", name)
        kind = "validation" if metric_points(history, "validate", name) else "training"
        if points:
            yield name, metric_text(points[-1][1]), f"{kind}, round {points[-1][0]}"
    if history:
        sent, received = (sum(getattr(each, key) for each in history) for key in ("bytes_sent", "bytes_received"))
        yield "Bytes", bytes_text(sent + received), f"{bytes_text(sent)} sent, {bytes_text(received)} received"
        yield "Time in rounds", seconds_text(sum(round_seconds(history))), ""


def _rounds(run: ReportedRun) -> str:
    history = run.history
    if not history:
        return ""
    half = MAX_ROUND_ROWS // 2
    shown = history if len(history) <= MAX_ROUND_ROWS else [*history[:half], *history[-half:]]
    names = metric_names(history)[:MAX_METRIC_COLUMNS]
    columns = [("validate" if metric_points(history, "validate", name) else "train", name) for name in names]
    formats = [column_format(value for _, value in metric_points(history, kind, name)) for kind, name in columns]
    heads = ["Clients", *(f"{name} ({'validation' if kind == 'validate' else 'training'})" for kind, name in columns)]
    time_of = seconds_format(round_seconds(history))
    rows: list[list[Cell]] = []
    for record in shown:
        values = [getattr(record, kind).get(name) for kind, name in columns]
        cells = ["\u2013" if value is None else form(value) for value, form in zip(values, formats, strict=True)]
        traffic = bytes_text(record.bytes_sent + record.bytes_received)
        clients = f"{len(record.updates)} of {len(record.sampled)}"
        rows.append(
            [str(record.round), clients, *cells, traffic, time_of(round_seconds([record])[0]), _notes(record, run)]
        )
    heads += ["Bytes", "Time"]
    head_columns = [Column("Round", is_number=True), *(Column(head, is_number=True) for head in heads), Column("Notes")]
    left = len(history) - len(shown)
    note = (
        f"{left:,} rounds between round {shown[half - 1].round} and round {shown[half].round} are left out."
        if left
        else ""
    )
    more = len(metric_names(history)) - len(names)
    notes = [note, f"Left out: {counted(more, 'more metric')}." if more > 0 else ""]
    return folded(
        f"All {len(shown)} rounds" if not left else f"{len(shown)} of {len(history)} rounds",
        table("Rounds", head_columns, rows, "said-above"),
        *(paragraph(each, "muted") for each in notes if each),
        is_open=len(shown) <= MAX_OPEN_ROWS,
    )


def _notes(record: RoundRecord, run: ReportedRun) -> str:
    refused = refused_clients(record, run)
    failed = record.failed_clients - refused
    notes = ["best"] * record.is_best
    notes += [f"skipped: {record.skipped}"] if record.skipped else []
    notes += [f"the run ended early: {record.stopped}"] if record.stopped else []
    notes += [f"{len(refused)} refused"] if refused else []
    notes += [f"{len(failed)} failed"] if failed else []
    notes += [f"retried {counted(record.asked_again, 'time')}"] if record.asked_again else []
    notes += [f"{counted(len(record.capped_weights), 'weight')} capped"] if record.capped_weights else []
    kinds = Counter(effect.kind for effect in record.rule_effects.values())
    notes += [f"{counted(kinds[kind], 'update')} {kind} by the rule" for kind in sorted(kinds)]
    return ", ".join(notes)


def _models(run: ReportedRun) -> str:
    named = [("last", run.model), *([] if run.best is None else [("best", run.best)])]
    rows = [_model_row(name, model) for name, model in named]
    columns = [Column("Model"), Column("File"), Column("Round", is_number=True), Column("Size", is_number=True)]
    return table("Models", [*columns, Column("Digest"), Column("Audit log")], rows, "wrap models")


def _model_row(name: str, model: ReportedModel) -> list[Cell]:
    logged = {True: "the same digest", False: "ANOTHER DIGEST: the file was changed", None: "\u2013"}[
        model.is_as_logged
    ]
    return [
        name,
        model.file,
        "\u2013" if model.round is None else str(model.round),
        "not there" if model.bytes is None else bytes_text(model.bytes),
        _digest(model.digest or "\u2013"),
        logged,
    ]


def _digest(digest: str) -> Markup:
    return Markup(f'<span class="digest">{text(digest, 100)}</span>')


def _digests(run: ReportedRun) -> str:
    audit, check = run.audit, run.audit.verification
    chain = "there is none"
    if check is not None:
        chain = f"{check.entries:,} entries, " + (
            "the chain holds"
            if check.fault is None
            else f"BROKEN in line {check.fault.line}: expected {check.fault.expected}"
        )
    rows: list[list[Cell]] = [
        ["Run", _digest(run.id)],
        ["flcore", audit.version or "not known"],
        ["Contract", _digest(run.fingerprint)],
        ["Code", _digest(audit.code_digest or "not known")],
        ["Audit log", chain],
    ]
    if check is not None:
        rows.append(["Head of the audit log", _digest(check.head)])
    if audit.continued:
        rows.append(["Continued", f"{counted(audit.continued, 'time')} by a server that was started again"])
    return table("What ran", [Column("What"), Column("Value")], rows, "wrap")


def _contract(run: ReportedRun) -> str:
    if run.contract is None:
        missing = "The contract is not in this directory: a download has its fingerprint only. The job's pack has it."
        return paragraph(missing, "muted")
    leaves = contract_leaves(run.contract)
    rows = [[key, value] for key, value in list(leaves.items())[:MAX_CONTRACT_ROWS]]
    more = len(leaves) - len(rows)
    note = paragraph(f"Left out: {counted(more, 'more key')}.", "muted") if more > 0 else ""
    keys = table("Keys of job.toml", [Column("Key"), Column("Value")], rows, "wrap said-above")
    return folded(f"All {len(leaves)} keys", keys, note)
