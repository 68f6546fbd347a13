"""The part of a report about participation: a strip of rounds for each client, and why clients were left out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from flcore.number_text import bytes_text, column_format, seconds_format
from flcore.reports.audit_facts import Refusal
from flcore.reports.html_page import Cell, Column, Markup, folded, paragraph, section, table, text
from flcore.reports.participation import (
    ClientParticipation,
    Part,
    left_out,
    part_counts,
    participation,
    spans,
    without_numbers,
)
from flcore.reports.reported_run import ReportedRun

MAX_CLIENTS, MAX_ROUNDS, MAX_REASONS = 200, 500, 200
"""What the tables show at most. Each says what it leaves out."""

OPEN_REASONS = 20
"""The rows of reasons that are not folded."""

MAX_OPEN_CLIENTS, OPEN_CLIENTS = 40, 20
"""With more clients, the table of all is folded, and one of a few stands before it."""

MAX_SINGLE_CELLS = 60
"""With more rounds, neighbours with the same part are one bar without gaps."""

STRIP_HEIGHT = 10


Format = Callable[[float], str]


@dataclass(frozen=True)
class _Look:
    """How a part is drawn: its CSS class, its top and its height. Parts differ in height, too, not only in colour."""

    style: str
    top: float
    height: float


LOOKS = {
    Part.COUNTED: _Look("counted", 2, 6),
    Part.UNVALIDATED: _Look("unvalidated", 5, 3),
    Part.REFUSED: _Look("refused", 0, 10),
    Part.FAILED: _Look("failed-part", 0, 10),
    Part.SKIPPED: _Look("skipped", 2, 1.5),
    Part.UNUSED: _Look("unused", 7, 3),
    Part.ABSENT: _Look("absent", 4.5, 1),
}


def participation_section(run: ReportedRun) -> str:
    """Return the grid of clients and rounds, with each client's share, seconds and bytes."""
    clients = participation(run)
    if not clients or not run.history:
        return ""
    shown = _chosen(clients)
    first = max(0, len(run.history) - MAX_ROUNDS)
    numbers = [record.round for record in run.history[first:]]
    notes = []
    if len(shown) < len(clients):
        notes.append(
            f"Of {len(clients)} clients, the {len(shown)} whose answers did not count most often are shown; "
            f"{len(clients) - len(shown)} are left out."
        )
    if first:
        notes.append(f"The bars show the last {len(numbers)} rounds; {first} earlier ones are left out of them.")
    heading = f"Rounds {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"Round {numbers[0]}"
    columns = [
        Column("Client"),
        Column(heading),
        Column("Counted", is_number=True),
        Column("Refused", is_number=True),
        Column("Failed", is_number=True),
        Column("Weight", is_number=True),
        Column("Share", is_number=True),
        Column("Seconds", is_number=True),
        Column("Received", is_number=True),
    ]
    weight_of = column_format(value for each in shown.values() if (value := each.median_weight) is not None)
    seconds_of = seconds_format(value for each in shown.values() if (value := each.median_seconds) is not None)
    rows = [_row(name, each, first, weight_of, seconds_of) for name, each in shown.items()]
    shown_table = table("Clients by round", columns, rows, "participation")
    if len(rows) > MAX_OPEN_CLIENTS:
        worst = set(_most_missing(shown)[:OPEN_CLIENTS])
        some = [row for name, row in zip(shown, rows, strict=True) if name in worst]
        title = f"The {len(some)} clients whose answers did not count most often"
        shown_table = table(title, columns, some, "participation") + folded(f"All {len(rows)} clients", shown_table)
    described = "Weight, share of the total weight and seconds until the answer are medians over rounds that counted."
    return section(
        "Who took part",
        _legend(clients),
        shown_table,
        *(paragraph(note, "muted") for note in [*notes, described]),
    )


def _chosen(clients: dict[str, ClientParticipation]) -> dict[str, ClientParticipation]:
    """Return at most `MAX_CLIENTS` clients in their order: those whose answers did not count most often."""
    kept = set(_most_missing(clients)[:MAX_CLIENTS])
    return {name: each for name, each in clients.items() if name in kept}


def _most_missing(clients: dict[str, ClientParticipation]) -> list[str]:
    """Return the clients, those first whose answers did not count most often."""
    missed = {name: each.count(Part.REFUSED, Part.FAILED, Part.UNUSED) for name, each in clients.items()}
    return sorted(clients, key=lambda name: (-missed[name], name))


def _row(name: str, client: ClientParticipation, first: int, weight_of: Format, seconds_of: Format) -> list[Cell]:
    weight, seconds = client.median_weight, client.median_seconds
    refused, failed = client.count(Part.REFUSED), client.count(Part.FAILED)
    return [
        Markup(f"<span>{text(name, 64)}</span>"),
        Markup(f'<div class="strip">{strip(client.parts[first:])}</div>'),
        f"{client.counted} of {len(client.parts)}",
        str(refused) if refused else "\u2013",
        str(failed) if failed else "\u2013",
        "\u2013" if weight is None else weight_of(weight),
        f"{100 * median(client.shares):.1f} %" if client.shares else "\u2013",
        "\u2013" if seconds is None else seconds_of(seconds),
        bytes_text(client.bytes) if client.bytes else "\u2013",
    ]


def strip(parts: Sequence[Part]) -> str:
    """Return a strip of rounds as SVG: a bar for each round, or for each run of equal ones if there are many."""
    paths = dict.fromkeys(Part, "")
    width = 0.86 if len(parts) <= MAX_SINGLE_CELLS else 1.0
    start = 0
    for index, part in enumerate(parts):
        is_last = index + 1 == len(parts)
        if width == 1 and not is_last and parts[index + 1] is part:
            continue
        look, length = LOOKS[part], index - start + width
        paths[part] += f"M{start} {look.top:g}h{length:g}v{look.height:g}H{start}z"
        start = index + 1
    drawn = "".join(f'<path class="{LOOKS[part].style}" d="{path}"/>' for part, path in paths.items() if path)
    said = ", ".join(f"{parts.count(part)} {part}" for part in Part if part in parts)
    return (
        f'<svg viewBox="0 0 {len(parts)} {STRIP_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f"{drawn}</svg>"
    )


def _legend(clients: dict[str, ClientParticipation]) -> str:
    counts = part_counts(clients)
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="{LOOKS[part].style}" d="M0 {LOOKS[part].top:g}h10v{LOOKS[part].height:g}H0z"/></svg>'
        f"{text(str(part))} \u00b7 {count:,}</li>"
        for part, count in counts.items()
        if count
    )
    return f'<ul class="legend">{items}</ul>'


def left_out_section(run: ReportedRun) -> str:
    """Return who was left out and why: failed and refused answers, dropped metrics, refused joins, skipped rounds."""
    return section(
        "Who was left out, and why", _reasons(run), _skipped(run), _dropped_metrics(run), _refusals(run)
    ) or (
        section("Who was left out, and why", paragraph("Nobody: in the rounds that are over, each answer counted."))
        if run.history
        else ""
    )


def _reasons(run: ReportedRun) -> str:
    found = left_out(run)
    if not found:
        return ""
    rows = [
        [each.client, each.task, each.how, str(len(each.rounds)), spans(each.rounds), each.reason]
        for each in found[:MAX_REASONS]
    ]
    columns = [Column("Client"), Column("Task"), Column("How"), Column("Rounds", is_number=True)]
    columns += [Column("Which rounds"), Column("Reason")]
    first = table("Answers that did not count", columns, rows[:OPEN_REASONS], "wrap")
    if len(rows) <= OPEN_REASONS:
        return first
    rest = table("Further answers that did not count", columns, rows[OPEN_REASONS:], "wrap said-above")
    title = f"{len(rows) - OPEN_REASONS} more rows"
    return first + folded(title, rest, _left_out_note(found))


def _left_out_note(found: Sequence[object]) -> str:
    more = len(found) - MAX_REASONS
    return paragraph(f"{more:,} less frequent rows are left out.", "muted") if more > 0 else ""


def _skipped(run: ReportedRun) -> str:
    rounds: dict[str, list[int]] = {}
    for record in run.history:
        if record.skipped:
            rounds.setdefault(record.skipped, []).append(record.round)
    rows = [[spans(numbers), str(len(numbers)), reason] for reason, numbers in list(rounds.items())[:MAX_REASONS]]
    columns = [Column("Rounds"), Column("How many", is_number=True), Column("Reason")]
    note = _left_out_note(list(rounds))
    return table("Rounds that left the model unchanged", columns, rows, "wrap") + note if rows else ""


def _dropped_metrics(run: ReportedRun) -> str:
    rounds: dict[tuple[str, str, str], list[int]] = {}
    for record in run.history:
        for client, metrics in record.odd_metrics.items():
            for name, reason in metrics.items():
                rounds.setdefault((client, name, reason), []).append(record.round)
    ordered = sorted(rounds.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [[client, name, spans(each), reason] for (client, name, reason), each in ordered[:MAX_REASONS]]
    columns = [Column("Client"), Column("Metric"), Column("Rounds"), Column("Reason")]
    return (
        table("Metrics that were dropped; the rest of the answer counted", columns, rows, "wrap")
        + _left_out_note(ordered)
        if rows
        else ""
    )


def _refusals(run: ReportedRun) -> str:
    counts = Counter[Refusal]()
    reasons: dict[Refusal, str] = {}
    for refusal, count in run.audit.refusals.items():
        alike = refusal._replace(reason=without_numbers(refusal.reason))
        counts[alike] += count
        reasons[alike] = refusal.reason
    found = counts.most_common()
    rows = [
        [
            each.client or "(no name)",
            each.word,
            f"{count:,}",
            reasons[each],
        ]
        for each, count in found[:MAX_REASONS]
    ]
    columns = [Column("Client"), Column("Refusal"), Column("Times", is_number=True), Column("Reason")]
    if not rows:
        return ""
    omitted = f"The log has omitted {run.audit.omitted:,} more entries." if run.audit.omitted else ""
    return (
        table("Refusals in the audit log, also those that a later answer made good", columns, rows, "wrap")
        + _left_out_note(found)
        + (paragraph(omitted, "muted") if omitted else "")
    )
