"""The report of a run: well-formed, self-contained, escaped, of bounded size, and true."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from flcore.number_text import bytes_text
from flcore.reports.html_report import report_page, write_page
from flcore.reports.participation import Part
from flcore.reports.participation_section import MAX_CLIENTS, MAX_ROUNDS, strip
from flcore.reports.reported_run import read_reported_run
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.events import AnswerRefused, Event, JoinRefused, RunEnded
from flcore.server.history import Participation, RoundRecord
from flcore.server.run_directory import RunDirectory
from flcore.server.run_summary import CRASHED
from tests.flcore.reports.parsed_page import ParsedPage
from tests.flcore.reports.written_runs import (
    ABORTED,
    DONE,
    FAILED,
    HOSTILE,
    STOPPED,
    history_lines,
    many_rounds,
    write_hospital,
    write_run,
)

SHEETS = (("flcore.reports", "page.css"), ("flcore.web", "static/page.css"))


def page_of(run: Path) -> ParsedPage:
    return ParsedPage(report_page(read_reported_run(run)))


def test_the_report_has_the_numbers_of_the_history(tmp_path: Path) -> None:
    page = page_of(write_hospital(tmp_path / "run"))
    history = history_lines(tmp_path / "run")
    assert page.tables["Rounds"] == [
        ["Round", "Clients", "accuracy (validation)", "loss (training)", "Bytes", "Time", "Notes"],
        ["1", "3 of 3", "0.5000", "0.4000", "5.10 kB", "5.0 s", "best"],
        ["2", "1 of 3", "0.7500", "0.7500", "3.70 kB", "1 min 01 s", "best, 1 refused, 2 failed, retried 1 time"],
        ["3", "0 of 2", "\u2013", "\u2013", "0 B", "1 min 00 s", "skipped: 1 of 2 updates, 1 failed"],
    ]
    total = sum(record.bytes_sent + record.bytes_received for record in history)
    assert bytes_text(total) in page.texts
    assert ["train", "2 min 04 s", "98 %", "1 min 00 s", "1 min 00 s"] in page.tables["Seconds per phase"]


def test_the_report_shows_who_took_part_and_who_was_left_out_and_why(tmp_path: Path) -> None:
    page = page_of(write_hospital(tmp_path / "run"))
    assert page.tables["Clients by round"] == [
        ["Client", "Rounds 1 to 3", "Counted", "Refused", "Failed", "Weight", "Share", "Seconds", "Received"],
        ["a", "", "2 of 3", "\u2013", "\u2013", "10", "55.0 %", "0.250 s", "1.40 kB"],
        ["b", "", "1 of 3", "\u2013", "2", "30", "30.0 %", "0.500 s", "700 B"],
        ["c", "", "1 of 3", "1", "\u2013", "60", "60.0 %", "4.000 s", "700 B"],
    ]
    assert "1 counted, 1 counted, another task failed, 1 no answer" in page.labels
    assert page.tables["Answers that did not count"][1:] == [
        ["b", "train", "failed", "2", "2\u20133", "no answer within 60 s"],
        ["a", "validate", "failed", "1", "2", "it raised"],
        ["c", "train", "refused: out-of-bounds", "1", "2", "expected at most 1000, got 1e9"],
    ]
    assert page.tables["Rounds that left the model unchanged"][1:] == [["3", "1", "1 of 2 updates"]]
    (refusals,) = [rows for caption, rows in page.tables.items() if caption.startswith("Refusals in the audit log")]
    assert ["eve", "join", "1", "'eve' is not in the job"] in refusals


def test_refused_and_failed_have_the_colours_of_the_web_page() -> None:
    pages = [files(package).joinpath(name).read_text("utf-8") for package, name in SHEETS]
    for name in ("refused", "failed", "violet"):
        of_report, of_page = ([value.lower() for value in re.findall(rf"--{name}: (#\w+);", page)] for page in pages)
        light, dark = of_page
        assert of_report == [light, dark, light], f"--{name} by light, by dark, and in print"
    assert ".refused { fill: var(--refused); }" in pages[0] and ".failed-part { fill: var(--failed); }" in pages[0]


def test_the_report_has_versions_and_digests(tmp_path: Path) -> None:
    run = read_reported_run(write_hospital(tmp_path / "run"))
    rows = dict(row for row in page_of(tmp_path / "run").tables["What ran"] if len(row) == 2)
    assert rows["flcore"] == "0.1.0" and rows["Contract"] == "f" * 64 and rows["Code"] == "c" * 64
    assert run.audit.verification is not None and rows["Head of the audit log"] == run.audit.verification.head
    assert rows["Audit log"] == f"{run.audit.verification.entries} entries, the chain holds"


def test_a_changed_audit_log_is_reported_as_broken(tmp_path: Path) -> None:
    log = write_hospital(tmp_path / "run") / AUDIT_FILE
    log.write_bytes(log.read_bytes().replace(b"'eve'", b"'bob'"))
    assert "BROKEN in line 5" in page_of(tmp_path / "run").text


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (DONE, "done", ""),
        (FAILED, "failed", "the job failed: round 4 has 1 update, and its quorum is 2"),
        (ABORTED, "aborted", "aborted by alice"),
        (STOPPED, "stopped", "the server was stopped"),
        (None, "stopped", CRASHED),
    ],
)
def test_the_report_says_how_the_run_stands(end: RunEnded | None, state: str, reason: str, tmp_path: Path) -> None:
    page = page_of(write_hospital(tmp_path / "run", end))
    assert page.texts[1:3] == ["hospital", state]
    assert not reason or reason in page.texts


def test_a_run_that_goes_on_and_has_no_round_yet(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", job="hospital", contract_fingerprint="f" * 64):
        page = page_of(tmp_path / "run")
    assert page.texts[2] == "running" and "No round has finished." in page.texts
    assert "figure" not in page.tags


def test_text_of_clients_is_escaped_everywhere(tmp_path: Path) -> None:
    part = Participation(1.0, {HOSTILE: 0.5}, 1, 1.0)
    record = RoundRecord(
        1,
        (HOSTILE, "b"),
        {HOSTILE: part},
        {HOSTILE: {HOSTILE: HOSTILE, "b": HOSTILE}},
        {HOSTILE: 0.5},
        {HOSTILE: 0.5},
        seconds={HOSTILE: 1.0, "round": 2.0},
        odd_metrics={HOSTILE: {HOSTILE: HOSTILE}},
        skipped=HOSTILE,
        stopped=HOSTILE,
    )
    events: list[Event] = [JoinRefused(HOSTILE, HOSTILE), AnswerRefused(HOSTILE, "b", 1, 1, HOSTILE, HOSTILE)]
    run = write_run(tmp_path / "run", [record], end=RunEnded(HOSTILE, True, "failed"), events=events, job=HOSTILE)
    html = report_page(read_reported_run(run))
    page = ParsedPage(html)  # no tag or attribute but ours
    assert "<script>alert(1)</script>" in page.text and "<script" not in html
    assert html.isascii() or all(char.isprintable() or char == "\n" for char in html)
    write_page(tmp_path / "report.html", html)
    assert page.text.count("<script>alert(1)</script>") > 10


def test_no_text_is_longer_than_a_bound(tmp_path: Path) -> None:
    record = RoundRecord(1, ("a",), failed={"train": {"a": "x" * 100_000}}, skipped="y" * 100_000)
    html = report_page(read_reported_run(write_run(tmp_path / "run", [record])))
    assert len(html) < 30_000 and max(map(len, ParsedPage(html).texts)) <= 1_000


def test_200_clients_and_500_rounds_fit_in_2_megabytes(large_run: Path) -> None:
    html = report_page(read_reported_run(large_run))
    page = ParsedPage(html)
    assert len(html) < 2_000_000
    assert len(page.tables["Clients by round"]) == MAX_CLIENTS + 1 and len(page.tables["Rounds"]) == MAX_ROUNDS + 1
    assert "left out" not in re.sub("Who was left out, and why", "", page.text)


def test_beyond_the_bounds_the_report_says_what_it_leaves_out(tmp_path: Path) -> None:
    def record(number: int) -> RoundRecord:
        names = tuple(f"c{each:03}" for each in range(MAX_CLIENTS + 5))
        failed = {name: f"reason {chr(0x4E00 + number)} of {name}" for name in names[-3:]}
        updates = {name: Participation(1.0, {}, 1, 1.0) for name in names[:5]}
        return RoundRecord(number, names, updates, {"train": failed}, seconds={"round": 1.0})

    page = page_of(write_run(tmp_path / "run", [record(number) for number in range(1, MAX_ROUNDS + 8)]))
    shown = page.tables["Clients by round"]
    assert len(shown) == MAX_CLIENTS + 1 and {"c202", "c203", "c204"} <= {row[0] for row in shown}
    for said in (
        "Of 205 clients, the 200 whose answers did not count most often are shown; 5 are left out.",
        "The bars show the last 500 rounds; 7 earlier ones are left out of them.",
        "1,321 less frequent rows are left out.",
        "7 rounds between round 250 and round 258 are left out.",
    ):
        assert said in page.texts


def test_a_strip_has_each_round_once() -> None:
    parts = [Part.COUNTED] * 70 + [Part.FAILED] * 2 + [Part.ABSENT] * 28
    assert re.findall(r'class="([\w-]+)" d="([^"]+)"', strip(parts)) == [
        ("counted", "M0 2h70v6H0z"),
        ("failed-part", "M70 0h2v10H70z"),
        ("absent", "M72 4.5h28v1H72z"),
    ]
    few = re.findall(r'class="counted" d="([^"]+)"', strip([Part.COUNTED] * 3))
    assert few == ["M0 2h0.86v6H0zM1 2h0.86v6H1zM2 2h0.86v6H2z"]


def test_a_page_replaces_an_earlier_one_and_makes_its_directory(tmp_path: Path) -> None:
    for content in ("one", "two"):
        write_page(tmp_path / "new/report.html", content)
    assert (tmp_path / "new/report.html").read_text() == "two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_a_line_of_a_chart_goes_through_the_points_of_the_history(tmp_path: Path) -> None:
    html = report_page(read_reported_run(write_run(tmp_path / "run", many_rounds(3, 50))))
    chart = next(each for each in html.split("<figure") if "<figcaption>accuracy" in each)
    (path,) = re.findall(r'class="line c0" d="M([^"]+)"', chart)
    drawn = [tuple(map(float, point.split())) for point in path.split("L")]
    values = [record.validate["accuracy"] for record in history_lines(tmp_path / "run")]
    assert len(drawn) == len(values)
    # Heights on the page fall by the same factor everywhere: two points give it, and the others follow.
    factor = (drawn[-1][1] - drawn[0][1]) / (values[-1] - values[0])
    assert [y for _, y in drawn] == pytest.approx(
        [drawn[0][1] + factor * (value - values[0]) for value in values], abs=0.11
    )
