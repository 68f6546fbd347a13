"""What a client does, as its connection tells it: over real gRPC and in-process."""

from itertools import groupby
from pathlib import Path

import numpy as np

from flcore import Arrays, Site, Task, Update
from flcore.client.client import Client
from flcore.client.observed_connection import ClientActivity, ObservedConnection
from tests.flcore.conftest import Scripted, Stage, adding


def run_observed(stage: Stage, functions: dict[str, object], rounds: int, **server: object) -> list[ClientActivity]:
    """Run a job with one client; return what its connection has told."""
    seen: list[ClientActivity] = []
    stage.open(wait_for=1, quorum=1, clients=["north"], rounds=rounds, **server)  # type: ignore[arg-type]
    connection = stage.connect()
    executor = Scripted(Site("north", ("north",)), functions)  # type: ignore[arg-type]
    client = Client(stage.job, executor, ObservedConnection(connection, seen.append))
    stage._clients.append(client)
    future = stage.pool.submit(client.run)
    stage.result()
    future.result(60)
    return seen


def phases(seen: list[ClientActivity]) -> list[tuple[str, str, int]]:
    return [key for key, _ in groupby((each.phase, each.task, each.round) for each in seen)]


def test_a_client_downloads_trains_and_uploads(stage: Stage) -> None:
    seen = run_observed(stage, {"train": adding(1.0)}, rounds=2)
    assert phases(seen) == [
        (phase, "train", number)
        for number in (1, 2)
        for phase in ("training", "downloading", "training", "uploading", "waiting")
    ]
    for phase in ("downloading", "uploading"):
        transfer = [each for each in seen if each.phase == phase and each.round == 1]
        assert transfer[0].done_bytes == 0 and transfer[-1].done_bytes == transfer[-1].total_bytes > 306 * 4
    second = [each for each in seen if each.round == 2]
    assert second[0].metrics == {"added": 1.0} and seen[-1].rounds == 2


def test_a_model_that_is_here_is_not_downloaded_and_metrics_alone_are_no_upload(stage: Stage) -> None:
    def validate(model: Arrays, _: Task) -> Update:
        return Update(weight=1.0, metrics={"loss": float(np.mean(model["w"]))})

    tasks = {"train": "weights", "validate": "metrics"}
    seen = run_observed(stage, {"train": adding(1.0), "validate": validate}, rounds=2, tasks=tasks)
    second = [phase for phase, task, number in phases(seen) if (task, number) == ("train", 2)]
    assert second == ["training", "uploading", "waiting"]
    assert {each.total_bytes for each in seen if each.phase == "uploading" and each.task == "validate"} == {0}
    # Of the first round: the run's end may cut the receipt of the last answer.
    trained = [each.metrics for each in seen if (each.task, each.round) == ("train", 2)]
    assert trained[0] == {"loss": 1.0} and trained[-1] == {"added": 1.0}


def test_a_failed_task_ends_in_waiting(stage: Stage, tmp_path: Path) -> None:
    def failing(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            raise ValueError("no data")
        return adding(1.0)(model, task)

    seen = run_observed(stage, {"train": failing}, rounds=2, on_quorum_failure="skip", quorum_retries=0)
    first = [phase for phase, _, number in phases(seen) if number == 1]
    assert first == ["training", "downloading", "training", "waiting"]
