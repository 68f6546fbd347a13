"""A round below its quorum: the missing are asked again, or it is skipped, or the job ends; and the server says so."""

import threading
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from flcore import Aggregator, Arrays, JobFailed, QuorumError, Task, Update
from flcore.aggregation.memory_quota import MemoryQuota
from flcore.event_log.event_lines import warning_line
from flcore.model.chunks import GlobalModel
from flcore.server import task_runner
from flcore.server.events import NoBestModel, RoundSkipped, TaskRetried, WaitingForClients
from flcore.server.open_attempt import quorum_error
from tests.flcore.conftest import Stage, adding, mean_of


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runner, "MAX_RETRY_DELAY_S", 0.05)


def events(stage: Stage, kind: type[Any]) -> list[Any]:
    return [event for event in stage.events if isinstance(event, kind)]


def test_a_client_that_is_there_and_silent_is_not_waited_for_for_ever(stage: Stage) -> None:
    stage.open(wait_for=2, quorum=2, clients=2, on_quorum_failure="retry", deadline_s=1.0)
    _, held = stage.join("client-1")
    stage.client("client-2", adding(1.0))
    with pytest.raises(QuorumError, match=r"client-1: it did not answer within the deadline of 1 s"):
        stage.result()
    assert [event.attempt for event in events(stage, TaskRetried)] == [1, 2]
    assert next(held), "its session lasts as long as it is referred to"


def test_missing_clients_are_retried_with_the_same_seed_and_the_others_are_not(stage: Stage) -> None:
    seeds: dict[str, list[int]] = {"client-1": [], "client-2": []}

    def train(model: Arrays, task: Task) -> Update:
        seeds[task.site.name].append(task.seed)
        if task.site.name == "client-1" and len(seeds["client-1"]) < 3:
            raise RuntimeError(f"no data yet: {len(seeds['client-1'])}")
        return adding(1.0 if task.site.name == "client-1" else 3.0)(model, task)

    stage.open(wait_for=2, quorum=2, clients=2, on_quorum_failure="retry")
    for name in seeds:
        stage.client(name, train)
    outcome = stage.result()
    assert mean_of(outcome) == {2.0}
    assert len(seeds["client-1"]) == 3 and len(set(seeds["client-1"])) == 1 and len(seeds["client-2"]) == 1
    record = outcome.history[0]
    assert record.asked_again == 2 and record.failed == {} and sorted(record.updates) == ["client-1", "client-2"]
    assert [(event.missing, event.answers, event.attempt) for event in events(stage, TaskRetried)] == [
        (("client-1",), 1, 1),
        (("client-1",), 1, 2),
    ]


def test_a_client_that_fails_three_times_for_one_reason_is_not_retried(stage: Stage) -> None:
    calls: list[str] = []

    def broken(model: Arrays, task: Task) -> Update:
        calls.append(task.site.name)
        raise RuntimeError("no column 'age'")

    stage.open(wait_for=2, quorum=2, clients=2, on_quorum_failure="retry")
    goodbye = stage.client("client-1", broken)
    stage.client("client-2", adding(1.0))
    with pytest.raises(QuorumError, match=r"1 of 2 answers are in, quorum 2: client-1: .*no column 'age'"):
        stage.result()
    assert calls == ["client-1"] * 3
    with pytest.raises(JobFailed, match=r"^the job failed: task 'train': 1 of 2 answers are in, quorum 2$"):
        goodbye.result(20)


def test_a_client_that_comes_back_is_waited_for(stage: Stage) -> None:
    stage.open(wait_for=2, quorum=2, clients=["client-1", "client-2"], on_quorum_failure="retry", deadline_s=0.5)
    _, silent = stage.join("client-1")
    stage.client("client-2", adding(1.0))
    next(silent)
    cast("Generator[object]", silent).close()

    def late() -> None:
        stage.client("client-1", adding(3.0))

    threading.Timer(1.0, late).start()
    outcome = stage.result()
    assert mean_of(outcome) == {2.0} and outcome.history[0].asked_again >= 1
    assert all(event.needed >= 1 and "client-1" in event.missing for event in events(stage, WaitingForClients))


def test_a_round_below_its_quorum_may_be_skipped(stage: Stage) -> None:
    def train(model: Arrays, task: Task) -> Update:
        if task.round == 2:
            raise RuntimeError("no data")
        return adding(1.0)(model, task)

    stage.open(wait_for=2, quorum=2, clients=2, rounds=3, on_quorum_failure="skip")
    stage.client("client-1", train)
    stage.client("client-2", adding(1.0))
    outcome = stage.result()
    assert mean_of(outcome) == {2.0}, "two rounds of three"
    assert [record.skipped for record in outcome.history] == [
        "",
        "task 'train': 1 of 2 answers are in, quorum 2",
        "",
    ]
    assert [event.round for event in events(stage, RoundSkipped)] == [2]


def test_attempts_come_to_an_end(stage: Stage) -> None:
    count = iter(range(100))

    def broken(model: Arrays, task: Task) -> Update:
        raise RuntimeError(f"try {next(count)}")

    stage.open(wait_for=1, clients=1, on_quorum_failure="retry", quorum_retries=3)
    stage.client("client-1", broken)
    with pytest.raises(QuorumError, match="try 3"):
        stage.result()
    assert next(count) == 4


def test_a_server_without_enough_clients_says_for_whom_it_waits_and_for_how_long(stage: Stage) -> None:
    stage.directory.joinpath("play.py").write_text(
        "def play(control):\n"
        "    for _ in control.rounds():\n"
        "        control.publish(control.train(control.initial_model, control.sample()).aggregate(), {})\n"
    )
    stage.open(
        wait_for=1, quorum=2, clients=["a", "b"], workflow="play.py:play", deadline_s=5, on_quorum_failure="retry"
    )
    stage.client("a", adding(1.0))
    threading.Timer(0.3, lambda: stage.client("b", adding(3.0))).start()
    assert mean_of(stage.result()) == {2.0}
    start, *later = events(stage, WaitingForClients)
    assert (start.connected, start.needed, start.missing, start.timeout_s) == (0, 1, ("a", "b"), None)
    assert WaitingForClients(1, 2, ("b",), 11 * 5.0) in later


def test_a_server_that_takes_any_name_waits_for_a_number_and_for_no_invented_names(stage: Stage) -> None:
    stage.open(wait_for=1, clients=2)
    stage.client("anna", adding(1.0))
    stage.result()
    start = events(stage, WaitingForClients)[0]
    assert start == WaitingForClients(0, 1, (), None)
    assert warning_line(start) == "waiting for clients, as long as it takes: 0 of 1 are connected"


def test_what_a_client_says_never_reaches_another(stage: Stage) -> None:
    def broken(model: Arrays, task: Task) -> Update:
        raise RuntimeError("patient 4711")

    stage.open(wait_for=2, quorum=2, clients=2)
    stage.client("client-1", broken)
    other = stage.client("client-2", adding(1.0))
    with pytest.raises(QuorumError, match="patient 4711"):
        stage.result()
    with pytest.raises(JobFailed) as caught:
        other.result(20)
    assert "4711" not in str(caught.value) and "client-1" not in str(caught.value)


def test_a_workflow_that_fails_tells_clients_nothing_but_that(stage: Stage) -> None:
    stage.directory.joinpath("play.py").write_text("def play(control):\n    raise ValueError('patient 4711')\n")
    stage.open(wait_for=1, clients=1, workflow="play.py:play")
    goodbye = stage.client("client-1", adding(1.0))
    with pytest.raises(ValueError, match="4711"):
        stage.result()
    with pytest.raises(JobFailed, match=r"^the job failed; the server's log says why$"):
        goodbye.result(20)


def test_an_error_names_ten_clients_and_counts_the_others() -> None:
    failed = {f"c{number:02}": "no bytes for 3 s" if number % 2 else "gone" for number in range(30)}
    error = quorum_error("train", 3, [*failed, "d"], failed)
    assert error.summary == "task 'train': 1 of 31 answers are in, quorum 3"
    assert str(error).count("c0") == 10 and "c10" not in str(error)
    assert str(error).endswith("; 10 more: gone; 10 more: no bytes for 3 s")


def test_close_at_holds_for_validation_too(stage: Stage) -> None:
    may_end = threading.Event()

    def slow(model: Arrays, task: Task) -> Update:
        may_end.wait(20)
        return Update(weight=1, metrics={"accuracy": 0.0})

    def quick(model: Arrays, task: Task) -> Update:
        return Update(weight=1, metrics={"accuracy": 1.0})

    tasks = {"train": "weights", "validate": "metrics"}
    stage.open(wait_for=3, quorum=2, close_at=2, tasks=tasks, deadline_s=20)
    for name, validate in [("client-1", quick), ("client-2", quick), ("client-3", slow)]:
        stage.client(name, adding(1.0), validate=validate)
    outcome = stage.result()
    may_end.set()
    assert outcome.history[0].validate == {"accuracy": 1.0}
    assert outcome.history[0].seconds["validate"] < 10


def test_a_round_whose_best_metric_nobody_reports_has_no_best(stage: Stage, tmp_path: Path) -> None:
    def validate(model: Arrays, task: Task) -> Update:
        name = "akkuracy" if task.round == 1 else "accuracy"
        return Update(weight=1, metrics={name: float(np.mean(model["b"]))})

    tasks = {"train": "weights", "validate": "metrics"}
    stage.open(wait_for=1, clients=1, rounds=2, tasks=tasks, best="accuracy:max", out=tmp_path / "out")
    stage.client("client-1", adding(1.0), validate=validate)
    assert [record.is_best for record in stage.result().history] == [False, True]
    assert events(stage, NoBestModel) == [NoBestModel("accuracy", ("akkuracy",))]


LOSING = """
import os
from pathlib import Path

def play(control):
    for _ in control.rounds():
        updates = control.train(control.initial_model, control.sample())
        files = sorted(Path({staging!r}).glob("*/segment-0.arrows"))
        assert len(files) == 2
        for file in files[:{cut}]:
            os.truncate(file, 100)
        model = updates.aggregate()
        assert len(updates.clients) == {left}
        control.publish(model, {{}})
"""


def done(result: bool) -> "Future[bool]":
    future: Future[bool] = Future()
    future.set_result(result)
    return future


@pytest.mark.parametrize(
    ("is_there", "cut"), [(True, 1), (True, 2), (False, 1)], ids=["its client is there", "two of two", "it is gone"]
)
def test_a_client_whose_update_the_disk_lost_is_retried(
    stage: Stage, tmp_path: Path, is_there: bool, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, gone = tmp_path / "out" / ".staging", threading.Event()
    stage.directory.joinpath("play.py").write_text(
        LOSING.format(staging=str(staging), left=2 if is_there else 1, cut=cut)
    )
    monkeypatch.setattr(MemoryQuota, "reserve", lambda *_, **__: done(False))  # all updates go to disk
    trained: list[str] = []

    def train(model: Arrays, task: Task) -> Update:
        trained.append(task.site.name)
        return Update({"w": np.full((2, 3), len(trained), "f4"), "b": np.full(300, len(trained), "f4")}, weight=1)

    if not is_there:
        finish = Aggregator.finish

        def after_all_have_left(aggregator: Aggregator, **how: bool) -> GlobalModel:
            for client in stage._clients:
                client.stop()
            gone.set()
            return finish(aggregator, **how)

        monkeypatch.setattr(Aggregator, "finish", after_all_have_left)
    stage.open(wait_for=2, clients=2, workflow="play.py:play", out=tmp_path / "out", deadline_s=3)
    for name in ("client-1", "client-2"):
        stage.client(name, train)
    outcome, record = stage.result(), stage.result().history[0]
    assert len(trained) == 2, "a client that is there sends again what it holds, and does not train again"
    if is_there:
        assert mean_of(outcome) == {1.5} and record.failed == {} and len(record.updates) == 2
    else:
        assert gone.is_set() and len(mean_of(outcome)) == 1 and len(record.updates) == 1
        (why,) = record.failed["train"].values()
        assert "deadline of 3 s" in why or "connection was lost" in why
