"""Workflows of several kinds, and a server that goes on with them."""

import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import ConnectionLost, FromServer, InProcessConnection, InProcessServer, Join

from flcore import Arrays, JobError, ModelGone, Site, Task, Update, load
from flcore.client.client import Client
from flcore.server.federation import Federation
from flcore.server.history_table import read_history
from flcore.server.open_attempt import OpenAttempt
from flcore.server.results import Results
from flcore.server.run_state import RunState
from tests.flcore.conftest import Function, Scripted, Stage, adding
from tests.flcore.server.test_continuation import NAMES, counting, kill, play, same

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)

TASKS = {"train": "weights", "validate": "metrics"}


def measuring(model: Arrays, _: Task) -> Update:
    return Update(weight=1.0, metrics={"mean": float(model["w"].mean())})


def run(
    stage: Stage,
    out: Path,
    names: Sequence[str] = NAMES,
    asked: list[tuple[str, int]] | None = None,
    trains: Mapping[str, Function] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a job with training and validation to its end; return the published tensors."""
    given: dict[str, Any] = {"wait_for": len(names), "rounds": 3, "out": out, "best": None, "durability": "disk"}
    stage.open(**(given | {"tasks": TASKS} | options))
    for name in names:
        number = NAMES.index(name) + 1
        train = (trains or {}).get(name, adding(0.1 * number, number))
        stage.client(name, counting(name, train, [] if asked is None else asked), validate=measuring)
    stage.result()
    stage.close()
    return load(out / "model.safetensors")


def workflow(directory: Path, body: str) -> str:
    (directory / "flow.py").write_text("import numpy as np\nimport flcore\n\n\n" + body)
    return "flow.py:flow"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flcore.server.serve.RETURN_GRACE_S", 1.0)
    monkeypatch.setattr("flcore.server.task_runner.DEFAULT_GRACE_S", 1.0)


def test_a_run_that_began_with_memory_goes_on_with_disk(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch, "end_call", 5, tmp_path / "out", tmp_path / "copy")  # round 2: trained, not published
    expected = play(stage, tmp_path / "out", durability="memory")
    assert same(play(stage, tmp_path / "copy", durability="disk"), expected)


def test_with_memory_the_history_names_the_clients_whose_updates_are_in_the_model(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch, "end_call", 7, tmp_path / "out", tmp_path / "copy")  # round 2: validated, not published
    run(stage, tmp_path / "out", durability="memory", quorum=2)
    left = NAMES[:2]
    run(stage, tmp_path / "copy", left, durability="memory", quorum=2)
    record = read_history(tmp_path / "copy")[1]
    assert sorted(record.updates) == sorted(left)
    assert record.validate["mean"] == pytest.approx(1.4 / 6 + 0.5 / 3)  # three clients in round 1, two in round 2


def test_a_payload_id_names_one_model(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, set[bytes]] = {}
    original = Federation.open_attempt

    def noting(self: Federation, contents: Any, model: Any, *arguments: Any, **named: Any) -> OpenAttempt:
        opened = original(self, contents, model, *arguments, **named)
        for assignment in opened.assignments.values():
            sent.setdefault(assignment.payload_id, set()).add(model.arrays()["w"].tobytes())
        return opened

    monkeypatch.setattr(Federation, "open_attempt", noting)
    kill(monkeypatch, "end_call", 6, tmp_path / "out", tmp_path / "copy")  # round 2: clients validate
    run(stage, tmp_path / "out", durability="memory", quorum=2)
    run(stage, tmp_path / "copy", NAMES[:2], durability="memory", quorum=2)
    # The second process sends another model in the call in which the first one was killed.
    assert len(sent) > 4
    assert [len(models) for models in sent.values()] == [1] * len(sent)


def test_calls_after_the_remaining_rounds_have_the_round_that_they_had(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    for _ in control.remaining_rounds():\n"
        "        control.publish(control.train(control.last_model, control.sample()).aggregate(), {})\n"
        "    control.publish(control.train(control.last_model, control.sample(0.4)).aggregate(), {})\n",
    )
    kill(monkeypatch, "end_round", 3, tmp_path / "out", tmp_path / "copy")

    def seeded(model: Arrays, task: Task) -> Update:
        draw = np.random.default_rng(task.seed)
        return Update({name: array + draw.random(dtype=np.float32) for name, array in model.items()}, weight=1.0)

    trains: dict[str, Function] = dict.fromkeys(NAMES, seeded)
    expected = run(stage, tmp_path / "out", trains=trains, workflow=flow, quorum=1)
    assert same(run(stage, tmp_path / "copy", trains=trains, workflow=flow, quorum=1), expected)


CLUSTERS = """
def flow(control):
    models = [control.initial_model, control.initial_model]
    for _ in control.rounds():
        control.sample()
        for number, clients in enumerate((["client-1", "client-2"], ["client-3"])):
            models[number] = control.train(models[number], clients).aggregate()
        control.publish(models[0], {})
"""


def test_a_workflow_with_two_models_is_told_that_one_is_gone(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flcore.server.serve.RETURN_GRACE_S", 5.0)
    flow = workflow(tmp_path, CLUSTERS)
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    run(stage, tmp_path / "out", workflow=flow, quorum=1, deadline_s=5)
    with pytest.raises(ModelGone):
        run(stage, tmp_path / "copy", workflow=flow, quorum=1, deadline_s=5)


RARELY = """
def flow(control):
    model = control.initial_model
    for number in control.rounds():
        model = control.train(model, control.sample()).aggregate()
        if number == 3:
            control.publish(model, {})
"""


def test_with_memory_rounds_that_are_run_again_are_in_the_history_once(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = workflow(tmp_path, RARELY)
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    expected = run(stage, tmp_path / "out", workflow=flow, durability="memory")
    asked: list[tuple[str, int]] = []
    assert same(run(stage, tmp_path / "copy", asked=asked, workflow=flow, durability="memory"), expected)
    assert sorted(asked) == [(name, number) for name in NAMES for number in (1, 2, 3)], "no model was published"
    assert [record.round for record in read_history(tmp_path / "copy")] == [1, 2, 3]


EVERY_FIFTH = """
def flow(control):
    model = control.initial_model
    for number in control.rounds():
        model = control.train(model, control.sample()).aggregate()
        if number % 5 == 0 or number == 12:
            control.publish(model, {})
"""


def test_with_memory_a_run_that_publishes_every_fifth_round_is_killed_twice(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options: dict[str, Any] = {
        "workflow": workflow(tmp_path, EVERY_FIFTH),
        "durability": "memory",
        "rounds": 12,
        "tasks": {"train": "weights"},
    }
    with monkeypatch.context() as patch:
        kill(patch, "end_round", 7, tmp_path / "out", first)
        expected = run(stage, tmp_path / "out", **options)
    asked: list[tuple[str, int]] = []
    with monkeypatch.context() as patch:
        kill(patch, "end_round", 5, first, second)  # of this process: round 10
        assert same(run(stage, first, asked=asked, **options), expected)
    assert {number for _, number in asked} == {6, 7, 8, 9, 10, 11, 12}, "rounds 6 and 7 were not published"
    assert [record.round for record in read_history(first)] == list(range(1, 13))
    asked.clear()
    assert same(run(stage, second, asked=asked, **options), expected)
    assert {number for _, number in asked} == {11, 12}
    assert [record.round for record in read_history(second)] == list(range(1, 13))


def test_with_memory_the_best_model_is_not_one_whose_round_was_run_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 of the first process publishes the best model; run again by other clients, its model is not the best."""
    kill(monkeypatch, "end_call", 8, tmp_path / "out", tmp_path / "copy")  # round 2: published
    options: dict[str, Any] = {"durability": "memory", "best": "mean:max", "rounds": 2}
    run(stage, tmp_path / "out", **options)
    assert same(load(tmp_path / "out/best.safetensors"), load(tmp_path / "out/model.safetensors"))
    trains: dict[str, Function] = dict.fromkeys(NAMES, adding(-5.0, 1))
    last = run(stage, tmp_path / "copy", trains=trains, **options)
    assert last["w"].max() < 0
    assert [record.is_best for record in read_history(tmp_path / "copy")] == [True, False]
    assert load(tmp_path / "copy/best.safetensors")["w"] == pytest.approx(np.full_like(last["w"], 1.4 / 6))


def test_a_model_whose_update_the_disk_has_lost_is_published_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its round is not over, and the client is gone: what was recorded after the training is of another model."""
    kill(monkeypatch, "end_call", 8, tmp_path / "out", tmp_path / "copy")  # round 2: published
    run(stage, tmp_path / "out", quorum=2)
    shutil.rmtree(next((tmp_path / "copy/.updates").glob("6-client-3-*")))
    left = NAMES[:2]
    last = run(stage, tmp_path / "copy", left, quorum=2, rounds=3)
    record = read_history(tmp_path / "copy")[1]
    assert sorted(record.updates) == sorted(left)
    assert record.validate["mean"] == pytest.approx(1.4 / 6 + 0.5 / 3)  # three clients in round 1, two in round 2
    assert last["w"] == pytest.approx(np.full_like(last["w"], 1.4 / 6 + 2 * 0.5 / 3))


def test_a_workflow_finds_its_values_in_the_state_that_it_refers_to(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    state = control.state\n"
        "    for number in control.remaining_rounds():\n"
        "        model = control.train(control.last_model, control.sample()).aggregate()\n"
        "        state['count'] = state.get('count', np.float64(0)) + 1\n"
        "        assert (type(state['count']), state['count']) == (np.float64, number)\n"
        "        control.publish(model, {})\n",
    )
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    expected = play(stage, tmp_path / "out", workflow=flow)
    assert same(play(stage, tmp_path / "copy", workflow=flow), expected)


TWICE = """
def flow(control):
    model = control.initial_model
    for _ in control.rounds():
        control.sample()
        skipped = control.train(model, ["client-3"], quorum=1)
        assert skipped.is_skipped
        model = control.train(skipped.aggregate(), ["client-1", "client-2"]).aggregate()
        control.publish(model, {})
"""


@pytest.mark.parametrize("hit", [2, 3])  # the first or the second training of round 1
def test_a_skipped_training_skips_no_other_one_of_its_round(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hit: int
) -> None:
    flow = workflow(tmp_path, TWICE)
    kill(monkeypatch, "end_call", hit, tmp_path / "out", tmp_path / "copy")
    options: dict[str, Any] = {"workflow": flow, "on_quorum_failure": "skip", "quorum": 2, "rounds": 2}
    trains = {"client-3": failing_in({1, 2})}
    expected = run(stage, tmp_path / "out", trains=trains, **options)
    assert expected["w"].max() > 0
    assert same(run(stage, tmp_path / "copy", trains=trains, **options), expected)
    for record in read_history(tmp_path / "copy"):
        assert record.sampled == ("client-3", "client-1", "client-2")
        assert sorted(record.updates) == ["client-1", "client-2"]
        assert list(record.failed["train"]) == ["client-3"]
        assert record.train == {"added": pytest.approx(0.5 / 3)}


CATCHING = """
def flow(control):
    model = control.initial_model
    for _ in control.rounds():
        clients = control.sample()
        try:
            model = control.train(model, clients).aggregate()
        except flcore.QuorumError:
            continue
        control.publish(model, {})
"""


def failing_in(rounds: set[int], times: int = 1000) -> Function:
    left = dict.fromkeys(rounds, times)

    def train(model: Arrays, task: Task) -> Update:
        if left.get(task.round, 0) > 0:
            left[task.round] -= 1
            raise ValueError("this client fails in this round")
        return adding(0.3, 3)(model, task)

    return train


def test_updates_of_a_task_that_failed_are_removed_at_the_end_of_the_next_round_that_publishes(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, kept = workflow(tmp_path, CATCHING), []
    original = Results.add

    def noting(self: Results, record: Any) -> None:
        kept.append(sorted(path.name.split("-")[0] for path in (tmp_path / "out/.updates").glob("*")))
        original(self, record)

    monkeypatch.setattr(Results, "add", noting)
    run(
        stage,
        tmp_path / "out",
        trains={"client-3": failing_in({1})},
        workflow=flow,
        quorum=3,
        tasks={"train": "weights"},
    )
    assert kept[1] == ["2", "2", "4", "4", "4"]  # of two clients in round 1, and of three in round 2
    assert kept[2] == ["7", "7", "7"], "the round is not over"


def test_a_round_whose_failure_was_caught_stays_over(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = workflow(tmp_path, CATCHING)
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    trains = {"client-3": failing_in({2}, times=1)}
    expected = run(stage, tmp_path / "out", trains=trains, workflow=flow, quorum=3)
    asked: list[tuple[str, int]] = []
    continued = run(stage, tmp_path / "copy", asked=asked, workflow=flow, quorum=3)
    assert sorted(asked) == sorted((name, 3) for name in NAMES)
    assert same(continued, expected)


def test_fresh_begins_anew_beside_a_record_that_cannot_be_read(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch, "end_call", 5, tmp_path / "out", tmp_path / "copy")
    expected = play(stage, tmp_path / "out")
    with sqlite3.connect(tmp_path / "copy/state.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert same(play(stage, tmp_path / "copy", fresh=True), expected)


@pytest.mark.parametrize(
    ("value", "out"), [("np.float32(0.5)", True), ("np.float32(0.5)", False), ("float('nan')", True)]
)
def test_a_workflow_publishes_metrics_of_its_own(stage: Stage, tmp_path: Path, value: str, out: bool) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    for _ in control.rounds():\n"
        "        model = control.train(control.initial_model, control.sample()).aggregate()\n"
        f"        control.publish(model, {{'gap': {value}}})\n",
    )
    stage.open(wait_for=1, clients=1, out=tmp_path / "out" if out else None, workflow=flow)
    stage.client("client-1", adding(1.0))
    stage.result()


def test_a_state_that_would_be_another_one_after_a_restart_is_refused(stage: Stage, tmp_path: Path) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    for number in control.remaining_rounds():\n"
        "        clients = control.sample()\n"
        "        control.publish(control.train(control.last_model, clients).aggregate(), {})\n"
        "        seen = control.state.setdefault('rounds', {})\n"
        "        seen[number] = 1\n"
        "    assert sorted(seen) == [1, 2, 3], seen\n",
    )
    with pytest.raises(JobError, match=r"control.state\['rounds'\]: .*\{1: 1\} would be \{'1': 1\}"):
        play(stage, tmp_path / "out", workflow=flow)


def test_values_that_were_set_before_the_loop_are_there_in_it(stage: Stage, tmp_path: Path) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    control.state.setdefault('best', 0.0)\n"
        "    for _ in control.remaining_rounds():\n"
        "        model = control.train(control.last_model, control.sample()).aggregate()\n"
        "        control.state['best'] = max(control.state['best'], 1.0)\n"
        "        control.publish(model, {})\n",
    )
    play(stage, tmp_path / "out", workflow=flow)


def test_a_workflow_that_loops_twice_over_its_rounds_is_refused(stage: Stage, tmp_path: Path) -> None:
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    model = control.initial_model\n"
        "    for phase in range(2):\n"
        "        for _ in control.rounds():\n"
        "            model = control.train(model, control.sample()).aggregate()\n"
        "            control.publish(model, {})\n",
    )
    with pytest.raises(JobError, match="loops over its rounds twice"):
        play(stage, tmp_path / "out", workflow=flow)


def test_clients_of_past_updates_are_those_that_the_workflow_saw(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk loses an update, its client is gone, and the server is restarted once more a round later."""
    flow = workflow(
        tmp_path,
        "def flow(control):\n"
        "    model = control.initial_model\n"
        "    for _ in control.rounds():\n"
        "        updates = control.train(model, control.sample())\n"
        "        model = updates.aggregate()\n"
        "        control.publish(model, control.validate(model, updates.clients))\n",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as patch:
        kill(patch, "end_call", 6, tmp_path / "out", first)  # round 2: trained
        run(stage, tmp_path / "out", workflow=flow, quorum=2)
    directory = next((first / ".updates").glob("6-client-3-*"))
    (directory / "checksums").unlink()
    with monkeypatch.context() as patch:
        kill(patch, "end_round", 1, first, second)  # of this process: round 2
        expected = run(stage, first, NAMES[:2], workflow=flow, quorum=2)
    assert same(run(stage, second, NAMES[:2], workflow=flow, quorum=2), expected)


def test_the_secret_of_the_tokens_is_readable_by_its_owner_alone(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch, "add_answer", 5, tmp_path / "out", tmp_path / "copy")
    before = os.umask(0o022)
    try:
        play(stage, tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "copy/state.sqlite").stat().st_mode) & 0o077 == 0


class MovingConnection:
    """The connection of a client that outlives its server, and finds the next one at the same address."""

    def __init__(self) -> None:
        self.address = "in-process"
        self._changed = threading.Condition()
        self._inner: InProcessConnection | None = None

    def move(self, server: InProcessServer | None) -> None:
        with self._changed:
            if self._inner is not None:
                self._inner.close()
            self._inner = None if server is None else InProcessConnection(server)
            self._changed.notify_all()

    def _there(self) -> InProcessConnection:
        with self._changed:
            self._changed.wait_for(lambda: self._inner is not None, 20)
            if self._inner is None:
                raise ConnectionLost("no server")
            return self._inner

    def session(self, join: Join) -> Iterator[FromServer]:
        return self._there().session(join)

    def upload(self, *arguments: Any) -> Any:
        return self._there().upload(*arguments)

    def download(self, *arguments: Any) -> Any:
        return self._there().download(*arguments)

    def report(self, *arguments: Any) -> Any:
        return self._there().report(*arguments)

    def running_transfers(self) -> Any:
        return self._there().running_transfers()

    def close(self) -> None:
        self.move(None)


@pytest.mark.parametrize("is_receipt_lost", [False, True])
def test_a_receipt_that_a_killed_server_did_not_send_changes_no_bit(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_receipt_lost: bool
) -> None:
    """Clients outlive the server. Compressed updates leave rounding errors, which the next update must add."""
    options: dict[str, Any] = {
        "wait_for": 3,
        "quorum": 3,
        "rounds": 3,
        "best": None,
        "durability": "disk",
        "wire": {"upload": "bfloat16"},
    }

    def training(number: int) -> Function:
        def train(model: Arrays, task: Task) -> Update:
            draw = np.random.default_rng(task.seed)
            return Update(
                {name: array + draw.random(array.shape, np.float32) for name, array in model.items()}, weight=number
            )

        return train

    stage.open(out=tmp_path / "expected", **options)
    for number, name in enumerate(NAMES, 1):
        stage.client(name, training(number))
    stage.result()
    expected = load(tmp_path / "expected/model.safetensors")
    stage.close()

    connections = [MovingConnection() for _ in NAMES]
    method = "add_answer" if is_receipt_lost else "end_call"
    original, hits = getattr(RunState, method), [0]

    def dying(*arguments: Any) -> None:
        original(*arguments)
        hits[0] += 1
        if hits[0] == (6 if is_receipt_lost else 5):  # round 2: the last answer, or all answers
            threading.Event().wait(0.5)
            shutil.copytree(tmp_path / "out", tmp_path / "copy", ignore=shutil.ignore_patterns("*status.json*"))
            for connection in connections:
                connection.move(None)
            raise ConnectionLost("killed")

    monkeypatch.setattr(RunState, method, dying)
    stage.open(out=tmp_path / "out", **options)
    clients = [
        Client(stage.job, Scripted(Site(name, NAMES), {"train": training(number)}), connection)
        for number, (name, connection) in enumerate(zip(NAMES, connections, strict=True), 1)
    ]
    assert isinstance(stage.server, InProcessServer)
    for connection in connections:
        connection.move(stage.server)
    ended: list[Future[str]] = [stage.pool.submit(client.run) for client in clients]
    try:
        assert stage.outcome.exception(30) is not None
        stage.open(out=tmp_path / "copy", **options)
        assert isinstance(stage.server, InProcessServer)
        for connection in connections:
            connection.move(stage.server)
        stage.result()
        assert [each.result(20) for each in ended] == ["the job is done"] * 3
        assert same(load(tmp_path / "copy/model.safetensors"), expected)
    finally:
        for client in clients:
            client.stop()
