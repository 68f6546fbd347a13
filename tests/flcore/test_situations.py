"""What happens to a federation shows as what it is, with who and why, in each place where somebody looks."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from flcore import Arrays, Task, Update
from flcore.server import task_runner
from tests.flcore.server.failing_disk import FailingDisk, Fault
from tests.flcore.situations import ADD_ONE, TIMEOUT_S, Played, Stage

NO_SPACE = "No space left on device"
OF_ENDS = {
    "flcore status ID",
    "flcore status ID --json",
    "flcore status RUN",
    "flcore status RUN --json",
    "the page's stream",
    "the page's status.json",
    "flcore logs ID",
    "--log-format json",
    "flcore report RUN",
    "flcore show ID",
    "flcore show RUN",
    "flcore show RUN --json",
}
"""The places that show how a job has ended."""

EVENTS_ALONE = {"--log-format json"}
"""The command, and not an event, says which file the disk did not take."""

OF_ROUNDS = {
    "flcore status ID",
    "flcore status ID --json",
    "flcore status RUN",
    "flcore status RUN --json",
    "the page's rounds",
    "flcore logs ID",
    "--log-format json",
    "flcore report RUN",
    "flcore show RUN",
    "flcore show RUN --json",
    "history.jsonl",
}
"""The places that show who was left out of a round."""


def refused(stage: Stage, _: pytest.MonkeyPatch) -> Played:
    def nans(model: Arrays, task: Task) -> Update:
        return Update({name: array * np.float32("nan") for name, array in model.items()}, weight=1.0)

    with stage.job("refused", "odd", nans) as job:
        job.wait_for_end("done")
        return job.look()


class HeldUp:
    """A training that has begun, and waits."""

    def __init__(self) -> None:
        self.has_begun, self.go_on = Event(), Event()

    def train(self, model: Arrays, task: Task) -> Update:
        self.has_begun.set()
        assert self.go_on.wait(TIMEOUT_S)
        return ADD_ONE(model, task)


def lost(stage: Stage, _: pytest.MonkeyPatch) -> Played:
    held_up = HeldUp()
    with stage.job("lost", "gone", held_up.train) as job:
        assert held_up.has_begun.wait(TIMEOUT_S)
        job.agents[-1].vanish()
        job.wait_for_end("done")
        held_up.go_on.set()
        return job.look()


def failed(stage: Stage, _: pytest.MonkeyPatch) -> Played:
    def broken(model: Arrays, task: Task) -> Update:
        raise ValueError("no data today in /srv/secret/data.csv")

    with stage.job("failed", "broken", broken, server__quorum=3, server__on_quorum_failure="fail") as job:
        job.wait_for_end("failed")
        return job.look()


def aborted(stage: Stage, _: pytest.MonkeyPatch) -> Played:
    held_up = HeldUp()
    with stage.job("aborted", "slow", held_up.train) as job:
        assert held_up.has_begun.wait(TIMEOUT_S)
        stage.lead.abort(job.id)
        held_up.go_on.set()
        job.wait_for_end("aborted")
        return job.look()


def no_space_for_an_update(stage: Stage, patch: pytest.MonkeyPatch) -> Played:
    FailingDisk(patch).fault = Fault("pwritev", r"staging-\d+/run/\.updates/\d+-third-.*segment", errno.ENOSPC)
    with stage.job("staging", "third", ADD_ONE, server__quorum=3, server__on_quorum_failure="skip") as job:
        job.wait_for_end("done")
        return job.look()


def no_space_for_the_history(stage: Stage, patch: pytest.MonkeyPatch) -> Played:
    FailingDisk(patch).fault = Fault("write", r"full-\d+/run/history\.jsonl", errno.ENOSPC, skip=1)
    with stage.job("full", "third", ADD_ONE) as job:
        job.wait_for_end("interrupted")
        return job.look()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, kernels: None) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_runner, "SETTLE_TIME_S", 0.0)
        patch.setattr(task_runner, "DEFAULT_GRACE_S", 0.3)
        patch.setattr(task_runner, "MAX_RETRY_DELAY_S", 0.01)
        stage = Stage(tmp_path_factory.mktemp("stage"))
        yield stage
        stage.close()


@pytest.mark.parametrize(
    ("play", "places", "words", "not_told"),
    [
        (refused, OF_ROUNDS, ["odd", "element 0 is nan"], "nan"),
        (lost, OF_ROUNDS, ["gone", "its connection was lost"], "gone"),
        (no_space_for_an_update, OF_ROUNDS, ["third", "the disk does not keep it"], "third"),
        (failed, OF_ENDS, ["failed", "broken: task 'train' raised ValueError: no data today in"], "secret"),
        (aborted, OF_ENDS, ["aborted", "aborted by alice"], "slow"),
        (
            no_space_for_the_history,
            OF_ENDS - EVENTS_ALONE,
            ["interrupted", f"history.jsonl: {NO_SPACE}"],
            str(Path("jobs/full")),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_has_happened_shows_as_what_it_is(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    play: Callable[[Stage, pytest.MonkeyPatch], Played],
    places: set[str],
    words: list[str],
    not_told: str,
) -> None:
    played = play(stage, monkeypatch)
    missing = {place: [word for word in words if word not in played.places[place]] for place in sorted(places)}
    assert {place: some for place, some in missing.items() if some} == {}
    assert not_told not in played.told, "sites do not learn what happened to others"
    of_lead = {place: text for place, text in played.places.items() if place.split()[-1] == "ID" or "page" in place}
    assert [place for place, text in of_lead.items() if "/srv/secret" in text or str(stage.directory) in text] == []
