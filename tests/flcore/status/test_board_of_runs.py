"""The board of a real run, over gRPC and in-process, says what its history and its audit log say."""

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flcore import Arrays, Job, Outcome, QuorumError, Task, Update
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.events import AnswerRefused, Event
from flcore.status import StatusBoard
from flcore.status.timeline import Phase
from tests.flcore.conftest import Stage, adding

COUNTED = ["queued", "downloading", "training", "queued", "uploading", "checked", "folded"]


def told(events: list[Event], job: Job) -> StatusBoard:
    board = StatusBoard.of(job.contract)
    for event in events:
        board.observe(event)
    return board


def refused_in_round_2(model: Arrays, task: Task) -> Update:
    arrays = {name: array.copy() for name, array in model.items()}
    if task.round == 2:
        arrays["b"][7] = np.nan
    return Update(arrays, weight=1.0, metrics={"added": 0.0})


def raising_in_round_3(model: Arrays, task: Task) -> Update:
    if task.round == 3:
        raise ValueError("no data today")
    return adding(1.0)(model, task)


def phases_of(timeline: tuple[Phase, ...], client: str) -> list[str]:
    return [each.phase for each in timeline if each.client == client]


@pytest.fixture
def finished(stage: Stage, tmp_path: Path) -> tuple[StatusBoard, Outcome]:
    """A run of three rounds: one client is refused in the second, one raises in the third."""
    stage.open(wait_for=3, quorum=2, rounds=3, clients=["good", "odd", "weak"], out=tmp_path / "out")
    stage.client("good", adding(1.0))
    stage.client("odd", refused_in_round_2)
    stage.client("weak", raising_in_round_3)
    outcome = stage.result()
    return told(stage.events, stage.job), outcome


def test_a_finished_run_says_who_took_part_and_who_was_left_out(
    finished: tuple[StatusBoard, Outcome], tmp_path: Path
) -> None:
    board, (history, _) = finished
    status = board.snapshot()
    assert (status.state, status.rounds_over, status.rounds) == ("done", 3, 3)
    assert board.records() == tuple(history)
    for record in history:
        timeline = board.timeline(record.round)
        folded = {each.client for each in timeline if each.phase == "folded"}
        assert folded == set(record.updates)
        for client in record.updates:
            assert [phase for phase in phases_of(timeline, client) if phase in COUNTED][-4:] == COUNTED[-4:]
    assert phases_of(board.timeline(1), "good") == COUNTED
    assert phases_of(board.timeline(2), "odd")[-1] == "refused"
    assert phases_of(board.timeline(3), "weak")[-1] == "failed"

    clients = {client.name: client for client in status.clients}
    assert {name: client.answers for name, client in clients.items()} == {"good": 3, "odd": 2, "weak": 2}
    assert "element 7 is nan" in clients["odd"].last_reason and clients["odd"].failures == 1
    assert "ValueError: no data today" in clients["weak"].last_reason and clients["weak"].refusals == {}
    failed = {client for record in history for client in record.failed.get("train", {})}
    assert failed == {name for name, client in clients.items() if client.failures}

    entries = [json.loads(line) for line in (tmp_path / "out" / AUDIT_FILE).read_text().splitlines()]
    refusals = Counter(entry["kind"] for entry in entries if entry["event"] == "answer-refused")
    assert status.refusals == dict(refusals) == clients["odd"].refusals
    assert [(each.client, each.round) for each in status.last_refusals] == [("odd", 2)]


def test_a_finished_run_has_the_bytes_of_its_history(finished: tuple[StatusBoard, Outcome]) -> None:
    board, (history, _) = finished
    status = board.snapshot()
    assert status.bytes_sent == sum(record.bytes_sent for record in history)
    assert status.bytes_received == sum(record.bytes_received for record in history)
    assert status.bytes_sent == sum(client.bytes_sent for client in status.clients)
    for client in status.clients:
        counted = sum(record.updates[client.name].bytes for record in history if client.name in record.updates)
        assert client.bytes_received >= counted > 0
    for shown, record in zip(status.last_rounds, history, strict=True):
        assert (shown.updates, shown.bytes_received) == (len(record.updates), record.bytes_received)
        assert shown.train == record.train and shown.seconds == record.seconds


class Heard(list[Event]):
    """Events, and a flag that is set with the first refusal."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal = threading.Event()

    def append(self, event: Event) -> None:
        super().append(event)
        if isinstance(event, AnswerRefused):
            self.refusal.set()


def test_a_client_that_fails_is_told_of_while_the_others_still_train(stage: Stage) -> None:
    """Not when the attempt closes: who looks at a round sees at once who was left out."""
    stage.events = heard = Heard()
    stage.open(wait_for=2, quorum=1, clients=["odd", "slow"])
    seen: list[StatusBoard] = []

    def training_until_the_other_is_refused(model: Arrays, task: Task) -> Update:
        assert heard.refusal.wait(20)
        seen.append(told(list(heard), stage.job))
        return adding(1.0)(model, task)

    def wrong(model: Arrays, task: Task) -> Update:
        return Update({name: array + np.float32(np.nan) for name, array in model.items()}, weight=1.0)

    stage.client("slow", training_until_the_other_is_refused)
    stage.client("odd", wrong)
    assert sorted(stage.result().history[0].updates) == ["slow"]
    assert {client.name: client.phase for client in seen[0].snapshot().clients} == {
        "odd": "refused",
        "slow": "training",
    }


def test_a_run_that_lacks_its_quorum_has_failed_with_the_reasons(stage: Stage) -> None:
    stage.open(wait_for=2, quorum=2, clients=["good", "weak"], rounds=3)
    stage.client("good", adding(1.0))
    stage.client("weak", raising_in_round_3)
    with pytest.raises(QuorumError):
        stage.result()
    status = told(stage.events, stage.job).snapshot()
    assert status.state == "failed" and "ValueError: no data today" in status.reason
    assert (status.rounds_over, status.round) == (2, 3)
