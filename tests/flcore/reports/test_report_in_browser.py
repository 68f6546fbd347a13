"""Reports and comparisons in a browser: on a phone, nothing is cut off, and reasons are read without scrolling."""

from pathlib import Path

import pytest

from flcore.reports.comparison import compare_runs
from flcore.reports.comparison_page import comparison_page
from flcore.reports.html_report import report_page, write_page
from flcore.reports.reported_run import read_reported_run
from flcore.server.history import Participation, RoundRecord
from tests.flcore.reports.written_runs import FAILED, write_hospital, write_run

pytestmark = pytest.mark.browser

LONG = "hospital-of-the-north-with-a-name-of-sixty-four-characters-in-all"[:64]
WIDER = """return [...document.querySelectorAll("body *")].filter(each => !each.closest("svg")
    && each.getBoundingClientRect().right > innerWidth + 1 && (!each.closest(".scroll") || each.closest(".stacked")))
    .map(each => each.outerHTML.slice(0, 80))"""


def test_a_phone_shows_all_of_it(tmp_path: Path) -> None:
    from tests.flcore.web.browser import open_browser, show_as

    records = [
        RoundRecord(
            number,
            (LONG, "b"),
            {"b": Participation(1.0, {"a_long_name_" * 10: 1e29}, 7_000_000, 1.5)},
            {"train": {LONG: "x" * 300}},
            {"a_long_name_" * 10: 1e29},
            {"accuracy": 0.5},
            10**12,
            10**12,
            {"train": 1.0, "round": 2.0},
        )
        for number in range(1, 30)
    ]
    runs = [write_hospital(tmp_path / "short", FAILED), write_run(tmp_path / "long", records, job="j" * 64)]
    reported = [read_reported_run(run) for run in runs]
    pages = [report_page(run) for run in reported] + [comparison_page(compare_runs(reported))]
    with open_browser(tmp_path / "profile") as browser:
        for number, page in enumerate(pages):
            write_page(tmp_path / f"{number}.html", page)
            for width in (320, 390):
                show_as(browser, width=width, height=800)
                browser.get((tmp_path / f"{number}.html").as_uri())
                assert browser.execute_script(WIDER) == []
