"""Trackers beside a run: they get all of it, and one that fails, hangs or is slow costs the run nothing."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import flcore
from flcore import JobError, Outcome
from flcore.server.background_observer import MAX_LEFT_ALONE
from flcore.server.events import RoundFinished, RunEnd, RunEnded, RunStarted
from flcore.server.history import RoundRecord
from flcore.status import StatusBoard
from flcore.status.observed_run import ObservedRun
from flcore.tracking import TrackedRun, Trackers
from flcore.tracking.best_model import best_model_files
from flcore.tracking.run_values import round_values
from tests.flcore.metrics.observed import small_contract
from tests.flcore.tracking.tracked import BEST_ROUND, ROUNDS, tracked_run

STARTED = RunStarted("0123456789abcdef", "played", "f", "c", "1")


class Recorded:
    """A tracker that keeps what it gets. `before` is called first, with the name of the call."""

    def __init__(self, before: Callable[[str], None] = lambda _: None) -> None:
        self._before = before
        self.runs: list[TrackedRun] = []
        self.values: dict[int, Mapping[str, float]] = {}
        self.models: list[list[Path]] = []
        self.ends: list[RunEnd] = []

    def begin(self, run: TrackedRun) -> None:
        self._before("begin")
        self.runs.append(run)

    def log_values(self, round_number: int, values: Mapping[str, float]) -> None:
        self._before("log_values")
        self.values[round_number] = values

    def log_best_model(self, files: Sequence[Path]) -> None:
        self._before("log_best_model")
        self.models.append(list(files))

    def end(self, end: RunEnd) -> None:
        self._before("end")
        self.ends.append(end)


def trackers(
    *made: Recorded, timeout_s: float = 60.0, max_model_bytes: int = 1 << 30, max_events: int = 100
) -> Trackers:
    makers = {f"stand-in-{number}": (lambda tracker=tracker: tracker) for number, tracker in enumerate(made)}
    return Trackers(makers, max_model_bytes=max_model_bytes, timeout_s=timeout_s, max_events=max_events)


def observed(directory: Path) -> ObservedRun:
    contract = small_contract()
    return ObservedRun("played", contract, StatusBoard.of(contract), directory)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The outcome of the same run without a tracker."""
    return tracked_run(tmp_path_factory.mktemp("untracked"), Trackers({}, max_model_bytes=0, timeout_s=1).observe_run)


def require_same(outcome: Outcome, other: Outcome) -> None:
    assert [(each.train, each.validate, each.is_best) for each in outcome.history] == [
        (each.train, each.validate, each.is_best) for each in other.history
    ]


def test_a_tracker_gets_all_of_a_run(tmp_path: Path, untracked: Outcome) -> None:
    tracker = Recorded()
    outcome = tracked_run(tmp_path, trackers(tracker).observe_run)
    require_same(outcome, untracked)
    [run] = tracker.runs
    assert run.name == f"tracked-{run.id}" and run.job == "tracked"
    assert run.parameters["server.rounds"] == ROUNDS and run.parameters["client.hyperparameters.lr"] == 0.1
    assert set(run.digests) == {"contract_fingerprint", "code_digest", "flcore_version"}
    assert tracker.values == {record.round: round_values(record) for record in outcome.history}
    assert tracker.models == [[tmp_path / "run/best.safetensors"]] and tracker.ends == ["done"]
    assert float(flcore.load(tracker.models[0][0])["w"][0]) == BEST_ROUND


def test_two_runs_of_a_job_on_one_day_have_names_of_their_own(tmp_path: Path) -> None:
    """The ids of runs begin with the day. TensorBoard's directories have these names."""
    first, second = (f"20261201T0500{second:02}-0123abcd" for second in (1, 2))
    tracker = Recorded()
    for run in (first, second):
        with trackers(tracker).observe_run(observed(tmp_path)) as observe:
            observe(RunStarted(run, "played", "f", "c", "1"))
    assert len({run.name for run in tracker.runs}) == 2


def test_a_tracker_that_never_returns_keeps_a_bounded_number_of_threads(tmp_path: Path) -> None:
    never = threading.Event()
    made, good = Recorded(lambda _: _wait(never)), Recorded()
    several = trackers(made, good, timeout_s=0.01)
    before = threading.active_count()
    try:
        for _ in range(MAX_LEFT_ALONE + 3):
            with several.observe_run(observed(tmp_path)) as observe:
                observe(STARTED)
        assert threading.active_count() <= before + MAX_LEFT_ALONE + 1
    finally:
        never.set()


def test_a_tracker_that_always_fails_costs_the_run_a_few_lines(
    tmp_path: Path, untracked: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(call: str) -> None:
        raise RuntimeError(f"no {call} today")

    good = Recorded()
    require_same(tracked_run(tmp_path, trackers(Recorded(fail), good).observe_run), untracked)
    assert len(good.values) == ROUNDS, "another tracker is not concerned"
    assert [record.message for record in caplog.records] == [
        "stand-in-0 failed, and the run goes on: RuntimeError: no begin today",
        f"stand-in-0: 0 events were left out, {ROUNDS + 2} failed",
    ]


def test_a_tracker_that_could_not_begin_begins_at_the_next_event(tmp_path: Path) -> None:
    calls: list[str] = []

    def fail_first(call: str) -> None:
        calls.append(call)
        if len(calls) == 1:
            raise ConnectionError("not there yet")

    tracker = Recorded(fail_first)
    tracked_run(tmp_path, trackers(tracker).observe_run)
    assert calls == ["begin", "begin", *["log_values"] * ROUNDS, "log_best_model", "end"]
    assert len(tracker.runs) == 1 and sorted(tracker.values) == [1, 2, 3]


def test_a_tracker_that_hangs_costs_the_run_its_bounded_time_at_the_end(
    tmp_path: Path, untracked: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()
    hanging, other = Recorded(lambda _: _wait(never)), Recorded(lambda _: _wait(never))
    try:
        outcome = tracked_run(tmp_path, trackers(hanging, other, timeout_s=0.1).observe_run)
    finally:
        never.set()
    require_same(outcome, untracked)
    for name in ("stand-in-0", "stand-in-1"):
        assert f"{name} did not end in time, and is left alone" in caplog.text
        assert f"{name}: {ROUNDS + 1} events were left out, 0 failed" in caplog.text


def _wait(event: threading.Event) -> None:
    assert event.wait(60)


def test_a_tracker_that_is_slower_than_the_run_loses_rounds_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait_at_begin(call: str) -> None:
        if call == "begin":
            begun.set()
            _wait(go_on)

    tracker = Recorded(wait_at_begin)
    with trackers(tracker, max_events=5).observe_run(observed(tmp_path)) as observe:
        observe(STARTED)
        assert begun.wait(60)
        for number in range(1, 101):
            observe(RoundFinished(RoundRecord(number)))
        go_on.set()
    assert list(tracker.values) == [1, 2, 3, 4, 5]
    assert caplog.text.count("stand-in-0 is slower than the run: events are left out from now on") == 1
    assert "stand-in-0: 95 events were left out, 0 failed" in caplog.text


@pytest.mark.parametrize("end", ["stopped", "interrupted"])
def test_a_run_that_goes_on_later_has_no_best_model_yet(tmp_path: Path, end: RunEnd) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"model")
    tracker = Recorded()
    with trackers(tracker).observe_run(observed(tmp_path)) as observe:
        observe(STARTED)
        observe(RunEnded("the server was stopped", failed=True, end=end))
    assert tracker.models == [] and tracker.ends == [end]


def test_a_run_that_did_not_start_is_not_tracked(tmp_path: Path) -> None:
    tracker = Recorded()
    with trackers(tracker).observe_run(observed(tmp_path)) as observe:
        observe(RunEnded("the server could not start", failed=True, end="failed"))
    assert tracker.runs == [] and tracker.ends == []


def test_a_best_model_that_is_too_large_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Recorded()
    tracked_run(tmp_path, trackers(tracker, max_model_bytes=1_000).observe_run)
    nbytes = (tmp_path / "run/best.safetensors").stat().st_size
    assert tracker.models == [] and tracker.ends == ["done"] and nbytes > 4_000
    assert f"does not get the best model: it has {nbytes} bytes, and tracking.max_model is 1000" in caplog.text


def test_an_error_at_the_best_model_still_ends_the_run(tmp_path: Path) -> None:
    def fail(call: str) -> None:
        if call == "log_best_model":
            raise OSError("no space left")

    tracker = Recorded(fail)
    tracked_run(tmp_path, trackers(tracker).observe_run)
    assert tracker.ends == ["done"]


def test_the_files_of_a_best_model_in_shards_are_its_index_and_they(tmp_path: Path) -> None:
    assert best_model_files(tmp_path) == []
    index, files = tmp_path / "best.safetensors.index.json", ("best-1.safetensors", "best-2.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": files[0], "b": files[1], "c": files[0]}}))
    assert best_model_files(tmp_path) == [index, *(tmp_path / file for file in files)]


def test_online_without_a_key_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from flcore.tracking import tracking_settings

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(JobError, match=r"tracking\.wandb\.mode: .*WANDB_API_KEY"):
        Trackers.of(tracking_settings({"tracking": {"wandb": {"project": "p", "mode": "online"}}}, Path()))
