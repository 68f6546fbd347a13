"""The live lines of `flcore run` and of `flcore client`: metrics, download, training and upload."""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from rich.console import Console

from flcore.cli.client_progress import ActivityDisplay, show_activity
from flcore.cli.progress import show_progress
from flcore.client.observed_connection import ClientActivity
from flcore.event_log.log import Log, console_writer
from flcore.job.parsing import parse_contract
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    BytesTransferred,
    ClientJoined,
    RoundFinished,
    RoundSkipped,
    TaskAnswered,
    TaskSent,
    notify_all,
)
from flcore.server.history import RoundRecord
from flcore.status import StatusBoard

CONTRACT = parse_contract(
    {
        "name": "job",
        "clients": 2,
        "server": {"model": "code.py:model", "rounds": 9},
        "client": {"executor": "code.py"},
        "tasks": {"train": {"returns": "weights"}},
    },
    "here",
)


def console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=is_terminal, width=200, highlight=False, markup=False), out


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_line_of_a_run_has_the_metrics_of_its_last_round() -> None:
    shown, out = console(is_terminal=True)
    board = StatusBoard.of(CONTRACT)
    with show_progress(CONTRACT, board, shown) as told:
        observe = notify_all(board.observe, told)
        observe(ClientJoined("north", 2))
        observe(TaskSent("train", 1, 2, ("north", "south"), "m"))
        observe(BytesTransferred(1_000_000, 0, "north"))
        observe(TaskAnswered("train", "north", 1, 1, 1.0, 9, "d"))
        metrics = {"loss": 0.25, "[red]auc": 0.5, "accuracy": 0.93333, "f1": 0.1}
        observe(RoundFinished(RoundRecord(1, train=metrics, seconds={"round": 1.0})))
    line = plain(out.getvalue())
    assert "1/9 rounds  train 1/2 clients" in line and "1.00 MB" in line
    assert "loss 0.25, [red]auc 0.5, accuracy 0.9333 and 1 more" in line


class SlowTerminal(io.StringIO):
    """A terminal that takes nothing while `is_free` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_free, self.is_asked = threading.Event(), threading.Event()
        self.is_free.set()

    def write(self, text: str) -> int:
        self.is_asked.set()
        assert self.is_free.wait(60.0)
        return super().write(text)


def test_a_terminal_that_hangs_holds_up_no_event() -> None:
    out = SlowTerminal()
    shown = Console(file=out, force_terminal=True, width=200, highlight=False, markup=False)
    board = StatusBoard.of(CONTRACT)
    with show_progress(CONTRACT, board, shown) as told:
        out.is_asked.clear()
        out.is_free.clear()
        board.observe(ClientJoined("north", 1))
        assert out.is_asked.wait(60.0), "the line is drawn"
        observing = threading.Thread(target=told, args=(RoundSkipped("train", 1, "nobody is there"),), daemon=True)
        observing.start()
        observing.join(60.0)
        is_held_up = observing.is_alive()
        out.is_free.set()
    assert not is_held_up and "round 1 is skipped" in plain(out.getvalue())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_first_refusal_of_a_client_is_told_with_its_reason(
    is_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, out = console(is_terminal=is_terminal)
    board = StatusBoard.of(CONTRACT)
    with show_progress(CONTRACT, board, shown) as told:
        observe = notify_all(board.observe, told)
        for number in (1, 2):
            observe(AnswerRefused("train", "north", number, 1, "non-finite", "element 7 is nan\n"))
        observe(AnswerRefused("train", "south", 2, 1, "non-finite", "element 8 is nan"))
    said = plain(out.getvalue()) + capsys.readouterr().err
    assert said.count("north was refused") == 1
    assert "round 1: north was refused in train: element 7 is nan\\n" in said
    assert "round 2: south was refused in train: element 8 is nan" in said


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(display: ActivityDisplay, clock: Clock) -> None:
    """A download of 50 MB in 5 s, a task, and an upload of 10 MB in half a second."""
    for done in range(6):
        display.tell_activity(ClientActivity("downloading", "train", 3, 9, done * 10_000_000, 50_000_000))
        clock.now += 1.0
    display.tell_activity(ClientActivity("training", "train", 3, 9))
    display.tell_progress(TaskProgress("north", "train", 3, 9, 20, 80))
    clock.now += 7.0
    display.tell_activity(ClientActivity("uploading", "train", 3, 9, 0, 10_000_000))
    clock.now += 0.5
    display.tell_activity(ClientActivity("uploading", "train", 3, 9, 10_000_000, 10_000_000))
    display.tell_activity(ClientActivity("waiting", "train", 3, 9, metrics={"loss": 0.25}))


@contextmanager
def displayed(shown: Console, clock: Clock) -> Iterator[ActivityDisplay]:
    with Log("plain", console_writer(shown)) as log, show_activity("north", shown, log, clock) as display:
        yield display


def opened(*, is_terminal: bool) -> tuple[AbstractContextManager[ActivityDisplay], Clock, io.StringIO]:
    shown, out = console(is_terminal=is_terminal)
    clock = Clock()
    return displayed(shown, clock), clock, out


def test_a_client_on_a_terminal_shows_download_training_upload_and_metrics() -> None:
    display, clock, out = opened(is_terminal=True)
    with display as now:
        play(now, clock)
        assert now._live is not None
        now._live.refresh()
    shown = plain(out.getvalue())
    assert "north: round 3/9 train waiting" in shown and "loss 0.25" in shown
    assert "north: round 3 of 9: train downloaded 50.0 MB in 6.0 s, 8.3 MB/s" in shown
    assert "uploaded" not in shown, "a short transfer is no line of its own"


def test_each_step_of_a_client_is_in_the_live_line() -> None:
    display, clock, out = opened(is_terminal=True)
    steps = {
        "north: round 3/9 train downloading": ClientActivity("downloading", "train", 3, 9, 10_000_000, 50_000_000),
        "north: round 3/9 train training": ClientActivity("training", "train", 3, 9),
        "north: round 3/9 train uploading": ClientActivity("uploading", "train", 3, 9, 5_000_000, 10_000_000),
    }
    with display as now:
        for words, activity in steps.items():
            now.tell_activity(activity)
            clock.now += 0.5
            assert now._live is not None
            now._live.refresh()
            assert words in plain(out.getvalue())
    assert "10.0 MB of 50.0 MB" in plain(out.getvalue()) and "5.00 MB of 10.0 MB" in plain(out.getvalue())


def test_elsewhere_long_transfers_and_progress_are_lines() -> None:
    display, clock, out = opened(is_terminal=False)
    with display as now:
        play(now, clock)
    assert out.getvalue().splitlines() == [
        "north: round 3 of 9: train downloaded 50.0 MB in 6.0 s, 8.3 MB/s",
        "north: round 3 of 9: train 20 of 80 (25 %)",
    ]
