"""The page in Chromium against names that JavaScript has, and replies that come late. `make test-web`."""

import threading
from collections.abc import Iterator, Sequence

import pytest

pytest.importorskip("selenium")
pytest.importorskip("starlette")

from selenium.webdriver import Chrome

from flcore.server.events import HistoryRestored, RoundFinished, RunEnded
from flcore.server.history import Participation, RoundRecord
from flcore.web import RunSource, WebServer, views
from tests.flcore.web.browser import open_browser
from tests.flcore.web.synthetic_job import SyntheticJob
from tests.flcore.web.test_web_page import errors, rows, text, wait

pytestmark = pytest.mark.browser

INHERITED = ("constructor", "toString", "valueOf", "hasOwnProperty", "isPrototypeOf")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shown_rounds(browser: Chrome) -> list[int]:
    browser.execute_script("document.getElementById('rounds-table').open = true")
    return [int(cells[0]) for cells in reversed(rows(browser, "rounds-rows"))]


def test_clients_and_metrics_may_have_the_names_of_what_objects_inherit(browser: Chrome) -> None:
    """Such a client hid the chart of all sites; such a metric, which not all rounds have, hid all charts."""
    job = SyntheticJob((*INHERITED, "north"), over=4, played=1)
    number = 5
    updates = {
        name: Participation(1.0, {"accuracy": 0.5, **dict.fromkeys(INHERITED, 2.0)}, 1, 1.0) for name in INHERITED
    }
    record = RoundRecord(number, INHERITED, updates, {}, {"toString": 2.0}, {"constructor": 3.0, "__proto__": 4.0})
    job.tell(HistoryRestored((record,)))
    with WebServer(RunSource(job.board, job.contract, None)) as server:
        browser.get(server.url)
        # The lowest and the highest site of the last round have labels.
        wait(browser, lambda: any(name in text(browser, "site-chart") for name in INHERITED))
        browser.execute_script("document.getElementById('sites-table').open = true")
        wait(browser, lambda: {cells[0] for cells in rows(browser, "sites-rows")} == {*INHERITED, "north"})
        charts = text(browser, "metric-charts")
        assert all(f"{name}round" in charts for name in ("toString", "constructor", "__proto__", "accuracy"))
        assert not errors(browser)


class Late(RunSource):
    """A source of which one reply on the rounds waits: the next one after `hold`."""

    held = False

    def hold(self) -> None:
        self.asked, self.go_on, self.held = threading.Event(), threading.Event(), True

    def records(self, key: str) -> Sequence[RoundRecord]:
        found = super().records(key)
        if self.held:
            self.held = False
            self.asked.set()
            assert self.go_on.wait(60)
        return found


def test_rounds_that_end_while_others_are_fetched_are_shown_too(browser: Chrome) -> None:
    """The last state of a run came while the page waited for its rounds, and no other one followed."""
    job = SyntheticJob(over=4, played=1)
    source = Late(job.board, job.contract, None)
    source.hold()
    with WebServer(source) as server:
        browser.get(server.url)
        assert source.asked.wait(60)
        job.tell(RoundFinished(job.record(5)), RoundFinished(job.record(6)))
        job.tell(RunEnded("the job is done", failed=False, end="done"))
        wait(browser, lambda: text(browser, "job-state") == "done")
        source.go_on.set()
        wait(browser, lambda: shown_rounds(browser) == [1, 2, 3, 4, 5, 6])
        assert not errors(browser)


def test_rounds_that_come_after_the_page_has_connected_again_leave_no_gap(browser: Chrome) -> None:
    """It had forgotten the rounds before them, and never asked for them again."""
    job = SyntheticJob(over=4, played=1)
    source = Late(job.board, job.contract, None)
    with WebServer(source) as server:
        browser.get(server.url)
        wait(browser, lambda: shown_rounds(browser) == [1, 2, 3, 4])
        source.hold()
        job.tell(RoundFinished(job.record(5)))
        assert source.asked.wait(60)
        connects = "import('/state.js').then(({ state }) => { state.message = null; })"
        browser.execute_script(f"{connects}; document.dispatchEvent(new Event('visibilitychange'))")
        wait(browser, lambda: browser.execute_async_script(HAS_MESSAGE))
        source.go_on.set()
        wait(browser, lambda: shown_rounds(browser) == [1, 2, 3, 4, 5])
        assert not errors(browser)


HAS_MESSAGE = "const done = arguments[0]; import('/state.js').then(({ state }) => done(state.message !== null))"


def test_a_history_that_comes_in_parts_is_shown_whole(browser: Chrome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_ROUNDS", 7)
    job = SyntheticJob(over=30, played=1)
    with WebServer(RunSource(job.board, job.contract, None)) as server:
        browser.get(server.url)
        wait(browser, lambda: shown_rounds(browser) == list(range(1, 31)))
        browser.execute_script("document.getElementById('sites-table').open = true")
        wait(browser, lambda: {cells[2] for cells in rows(browser, "sites-rows")} >= {"30"})
        assert not errors(browser)
