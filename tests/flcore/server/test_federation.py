"""A federation at work: rounds, metrics, deltas, samples, workflows; the same over gRPC and in-process."""

import gc
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import Refused

from flcore import (
    Arrays,
    JobError,
    JobFailed,
    Model,
    ModelSpec,
    QuorumError,
    StoredModel,
    Task,
    TensorSpec,
    Update,
    load,
)
from flcore.aggregation.staged_update import StagedUpdate
from flcore.job.parsing import parse_contract
from flcore.server.federation import Federation
from flcore.server.task_contents import SAMPLER_LABEL, derive_seed
from tests.flcore.conftest import START, Stage, adding, mean_of
from tests.reference import bits_of


def test_the_next_model_is_the_weighted_mean(stage: Stage) -> None:
    stage.open(wait_for=3, rounds=2)
    goodbyes = [
        stage.client(f"client-{i}", adding(value, weight))
        for i, value, weight in ((1, 1.0, 1), (2, 4.0, 2), (3, 4.0, 1))
    ]
    outcome = stage.result()
    assert mean_of(outcome) == {6.5}
    assert [goodbye.result(10) for goodbye in goodbyes] == ["the job is done"] * 3
    first = outcome.history[0]
    assert first.sampled == ("client-1", "client-2", "client-3")
    assert first.train == {"added": 3.25}
    assert {name: part.weight for name, part in first.updates.items()} == {"client-1": 1, "client-2": 2, "client-3": 1}
    assert first.bytes_received > 3 * 306 * 4 and first.bytes_sent >= 3 * 306 * 4
    assert set(first.seconds) == {"train", "aggregate", "keep", "round"}
    assert list(outcome.model.arrays()) == list(START)


def test_updates_may_be_folded_as_they_come(stage: Stage) -> None:
    stage.open(wait_for=3, rounds=2, plan="streaming")
    for i, value, weight in ((1, 1.0, 1), (2, 4.0, 2), (3, 4.0, 1)):
        stage.client(f"client-{i}", adding(value, weight))
    assert mean_of(stage.result()) == {6.5}


def test_clients_may_return_differences(stage: Stage) -> None:
    def train(model: Arrays, task: Task) -> Update:
        return Update({name: np.full(array.shape, task.round, np.float32) for name, array in model.items()}, weight=2)

    stage.open(wait_for=2, rounds=3, tasks={"train": "delta"}, clients=2)
    for name in ("client-1", "client-2"):
        stage.client(name, train)
    assert mean_of(stage.result()) == {6.0}


def test_the_model_is_validated_each_round_and_the_best_is_kept(stage: Stage, tmp_path: Path) -> None:
    def validate(model: Arrays, _: Task) -> Update:
        value = float(model["w"][0, 0])
        return Update(weight=10, metrics={"error": abs(value - 2.0)})

    stage.open(
        wait_for=2,
        rounds=4,
        quorum=2,
        best="error:min",
        clients=2,
        out=tmp_path / "out",
        tasks={"train": "weights", "validate": "metrics"},
    )
    for name in ("client-1", "client-2"):
        stage.client(name, adding(1.0), validate=validate)
    outcome = stage.result()
    assert [record.validate for record in outcome.history] == [{"error": e} for e in (1.0, 0.0, 1.0, 2.0)]
    assert [record.is_best for record in outcome.history] == [True, True, False, False]
    assert set(load(tmp_path / "out/best.safetensors")["w"].reshape(-1).tolist()) == {2.0}
    assert set(load(tmp_path / "out/model.safetensors")["w"].reshape(-1).tolist()) == {4.0}
    lines = (tmp_path / "out/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4]
    # The model that was validated is the one that is trained next: it travels once.
    assert outcome.history[1].bytes_sent < outcome.history[0].bytes_sent


def test_clients_see_the_round_and_their_own_seed(stage: Stage) -> None:
    seen: dict[tuple[str, int], int] = {}

    def train(model: Arrays, task: Task) -> Update:
        seen[task.site.name, task.round] = task.seed
        assert task.rounds == 3 and task.name == "train"
        with pytest.raises(ValueError, match="read-only"):
            model["w"][...] = 0
        return Update(model, weight=1)

    stage.open(wait_for=2, rounds=3, clients=2)
    for name in ("client-1", "client-2"):
        stage.client(name, train)
    stage.result()
    assert len(seen) == 6 and len(set(seen.values())) == 6
    assert all(0 <= seed < 2**32 for seed in seen.values())


def test_the_order_of_arrival_does_not_matter(stage: Stage) -> None:
    rng = np.random.default_rng(5)
    parts = {f"client-{i}": rng.standard_normal(306).astype(np.float32) for i in (1, 2, 3)}
    results = []
    for order in (("client-1", "client-2", "client-3"), ("client-3", "client-1", "client-2")):
        turn = {name: threading.Event() for name in order}
        turn[order[0]].set()

        def train(model: Arrays, task: Task, order: Any = order, turn: Any = turn) -> Update:
            name = task.site.name
            assert turn[name].wait(20)
            values = parts[name]
            position = order.index(name) + 1
            if position < len(order):
                threading.Timer(0.2, turn[order[position]].set).start()
            return Update({"w": values[:6].reshape(2, 3), "b": values[6:]}, weight=3)

        stage.open(wait_for=3)
        for name in order:
            stage.client(name, train)
        results.append(bits_of(stage.result().model))
        stage.close()
    assert results[0] == results[1]


def test_a_share_of_the_clients_is_sampled_and_the_seed_says_which(stage: Stage) -> None:
    samples = []
    for _ in range(2):
        stage.open(wait_for=4, rounds=6, fraction=0.5, clients=4)
        for i in range(1, 5):
            stage.client(f"client-{i}", adding(1.0))
        history = stage.result().history
        samples.append([record.sampled for record in history])
        stage.close()
    assert samples[0] == samples[1]
    assert all(len(sample) == 2 for sample in samples[0])
    assert len(set(samples[0])) > 1


def test_no_client_has_the_seed_of_the_sampler() -> None:
    """A client may be called `sample`; the sampler's label is not a valid name."""
    assert derive_seed(7, 3, "sample") != derive_seed(7, 3, SAMPLER_LABEL)
    job = {
        "server": {"model": "a.py", "rounds": 1},
        "client": {"executor": "a.py"},
        "tasks": {"t": {"returns": "delta"}},
    }
    for clients in ([SAMPLER_LABEL], [f"x{SAMPLER_LABEL}"]):
        with pytest.raises(JobError, match="clients"):
            parse_contract({"name": "x", "clients": clients, **job}, "here")
    assert not parse_contract({"name": "x", "clients": 3, **job}, "here").may_join(SAMPLER_LABEL)


def test_a_round_closes_as_soon_as_enough_are_in(stage: Stage) -> None:
    release = threading.Event()

    def slow(model: Arrays, _: Task) -> Update:
        release.wait(20)
        return Update(model, weight=1)

    stage.open(wait_for=3, quorum=2, close_at=2)
    goodbye = stage.client("client-1", slow)
    stage.client("client-2", adding(1.0))
    stage.client("client-3", adding(3.0))
    outcome = stage.result()
    release.set()
    assert mean_of(outcome) == {2.0}
    assert "before it had answered" in outcome.history[0].failed["train"]["client-1"]
    assert goodbye.result(20) == "the job is done"


def test_a_slow_client_is_passed_over_and_takes_part_again(stage: Stage) -> None:
    second_round, is_back = threading.Event(), threading.Event()

    def slow_at_first(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            assert second_round.wait(20)
        else:
            is_back.set()
        return Update({name: array + np.float32(9) for name, array in model.items()}, weight=1)

    def steady(model: Arrays, task: Task) -> Update:
        if task.round == 2:
            second_round.set()
            assert is_back.wait(20)
        return adding(1.0)(model, task)

    stage.open(wait_for=2, rounds=3, deadline_s=3.0, clients=2)
    stage.client("client-1", slow_at_first)
    stage.client("client-2", steady)
    history = stage.result().history
    assert list(history[0].updates) == ["client-2"]
    assert "deadline of 3 s" in history[0].failed["train"]["client-1"]
    assert "client-1" in history[2].updates


def test_a_client_that_joins_late_takes_part_from_the_next_round_on(stage: Stage) -> None:
    joined = threading.Event()

    def early(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            stage.client("client-2", adding(3.0))
            stage.federation.state.wait_for_clients(2, 20)
            joined.set()
        return adding(1.0)(model, task)

    stage.open(wait_for=1, rounds=2, clients=2)
    stage.client("client-1", early)
    history = stage.result().history
    assert joined.is_set()
    assert list(history[0].updates) == ["client-1"]
    assert sorted(history[1].updates) == ["client-1", "client-2"]


def test_code_that_raises_costs_its_client_the_round_and_the_server_is_told(stage: Stage) -> None:
    def broken(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            raise RuntimeError("no space left on device")
        return adding(3.0)(model, task)

    stage.open(wait_for=2, rounds=2, clients=2)
    stage.client("client-1", broken)
    stage.client("client-2", adding(1.0))
    history = stage.result().history
    assert "RuntimeError: no space left on device" in history[0].failed["train"]["client-1"]
    assert list(history[0].updates) == ["client-2"] and len(history[1].updates) == 2


def test_a_round_without_its_quorum_fails_the_job_with_every_reason(stage: Stage) -> None:
    def broken(model: Arrays, _: Task) -> Update:
        raise RuntimeError("no data")

    stage.open(wait_for=2, quorum=2, clients=2)
    goodbye = stage.client("client-1", broken)
    stage.client("client-2", adding(1.0))
    with pytest.raises(QuorumError, match=r"1 of 2 answers are in, quorum 2: client-1: .*no data"):
        stage.result()
    with pytest.raises(JobFailed, match="the job failed: task 'train'"):
        goodbye.result(20)


def test_an_empty_round_is_no_round(stage: Stage) -> None:
    def broken(model: Arrays, _: Task) -> Update:
        raise RuntimeError("no data")

    stage.open(wait_for=1, clients=1)
    stage.client("client-1", broken)
    with pytest.raises(QuorumError, match="0 of 1 answers are in"):
        stage.result()


def test_a_workflow_of_the_job_works_the_same_way(stage: Stage) -> None:
    stage.directory.joinpath("play.py").write_text(
        "def twice(control):\n"
        "    model = control.initial_model\n"
        "    for _ in control.rounds():\n"
        "        for _ in range(2):\n"
        "            updates = control.train(model, control.sample())\n"
        "            assert updates.clients == ('client-1',) and updates.metrics == {'added': 1.0}\n"
        "            model = updates.aggregate()\n"
        "        doubled = {name: 2 * array for name, array in model.arrays().items()}\n"
        "        model = control.model_of(doubled)\n"
        "        control.publish(model, {})\n"
    )
    stage.open(clients=1, workflow="play.py:twice", rounds=2)
    stage.client("client-1", adding(1.0))
    assert mean_of(stage.result()) == {12.0}


def test_a_client_with_another_contract_is_refused_and_told_the_difference(stage: Stage) -> None:
    stage.open(rounds=2)
    other = stage.job.with_overrides(rounds=3, seed=5)
    with pytest.raises(Refused) as caught:
        stage.client("client-1", adding(1.0), job=other).result(20)
    assert "seed: the server has 0, the client has 5" in str(caught.value)
    assert "server.rounds: the server has 2, the client has 3" in str(caught.value)
    assert caught.value.kind == "contract"


def test_other_code_is_refused_only_where_the_contract_says_so(stage: Stage, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "code.py").write_text("# other code")
    stage.open(same_code=True)
    other = type(stage.job)(stage.job.contract, elsewhere)
    with pytest.raises(Refused, match="holds other code"):
        stage.client("client-1", adding(1.0), job=other).result(20)
    stage.close()
    stage.open(clients=1)
    other = type(stage.job)(stage.job.contract, elsewhere)
    stage.client("client-1", adding(1.0), job=other)
    assert mean_of(stage.result()) == {1.0}


def test_only_those_who_are_listed_may_join(stage: Stage) -> None:
    stage.open(clients=["hospital-a", "hospital-b"])
    with pytest.raises(Refused, match="client 'hospital-c' is not among the job's clients") as caught:
        stage.client("hospital-c", adding(1.0), job=stage.job.with_overrides(seed=7)).result(20)
    assert "hospital-a" not in str(caught.value) and "seed" not in str(caught.value), "a stranger learns nothing"


def test_any_task_of_the_contract_can_be_asked(stage: Stage) -> None:
    stage.directory.joinpath("ask.py").write_text(
        "def survey(control):\n"
        "    for _ in control.rounds():\n"
        "        control.validate(control.initial_model, control.sample(), task='count_rows')\n"
    )
    stage.open(clients=1, workflow="ask.py:survey", tasks={"count_rows": "metrics"})
    stage.client("client-1", count_rows=lambda _model, _task: Update(weight=5, metrics={"rows": 5}))
    assert stage.result().history[0].validate == {"rows": 5.0}


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_a_workflow_may_train_twice_before_it_aggregates(stage: Stage, tmp_path: Path, plan: str) -> None:
    stage.directory.joinpath("twice.py").write_text(
        "from flcore import QuorumError\n"
        "def twice(control):\n"
        "    for index in control.rounds():\n"
        "        first = control.train(control.initial_model, ['client-1'])\n"
        "        second = control.train(control.initial_model, ['client-2'])\n"
        "        try:\n"
        "            control.train(control.initial_model, ['client-3'])\n"
        "        except QuorumError:\n"
        "            pass\n"
        "        later, earlier = second.aggregate(), first.aggregate()\n"
        "        control.publish(earlier if index == 1 else later, {})\n"
    )

    def failing(model: Arrays, task: Task) -> Update:
        raise ValueError("no data")

    stage.open(wait_for=3, rounds=2, workflow="twice.py:twice", plan=plan, out=tmp_path / "out")
    stage.client("client-1", adding(1.0))
    stage.client("client-2", adding(2.0))
    stage.client("client-3", failing)
    assert mean_of(stage.result()) == {2.0}


def test_updates_are_freed_at_once_and_not_when_the_garbage_collector_finds_them(stage: Stage) -> None:
    stage.open(wait_for=2, rounds=20, clients=2)
    gc.collect()
    earlier = {id(thing) for thing in gc.get_objects()}
    gc.disable()
    try:
        for name in ("client-1", "client-2"):
            stage.client(name, adding(1.0))
        assert mean_of(stage.result()) == {20.0}
        objects = [thing for thing in gc.get_objects() if id(thing) not in earlier]
        assert not [thing for thing in objects if isinstance(thing, StagedUpdate) and thing.is_in_memory]
        assert len([thing for thing in objects if isinstance(thing, Model)]) < 10, "not one for each of 20 rounds"
    finally:
        gc.enable()


def test_sixty_four_clients_at_once(stage: Stage) -> None:
    stage.open(wait_for=64, clients=64, rounds=2, quorum=64)
    for name in stage.job.contract.client_names:
        stage.client(name, adding(1.0))
    outcome = stage.result()
    assert mean_of(outcome) == {2.0} and len(outcome.history[1].updates) == 64


@pytest.mark.parametrize("plan", ["batch", "streaming"])
@pytest.mark.parametrize("returns", ["weights", "delta"])
def test_a_server_with_a_directory_gives_the_same_bits(stage: Stage, tmp_path: Path, plan: str, returns: str) -> None:
    found = []
    for out in (None, tmp_path / "out"):
        stage.open(wait_for=3, rounds=3, plan=plan, out=out, tasks={"train": returns}, best=None)
        for i, value, weight in ((1, 1.1, 1), (2, 4.2, 2), (3, -4.3, 7)):
            stage.client(f"client-{i}", adding(value, weight))
        model = stage.result().model
        assert type(model) is (StoredModel if plan == "batch" and out else Model)
        found.append(bits_of(model))
        stage.close()
    found.append(bits_of(Model.of(load(tmp_path / "out" / "model.safetensors"))))
    assert found[0] == found[1] == found[2]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["audit.jsonl", "history.jsonl", "model.safetensors", "run.json", "state.sqlite"]


def test_no_model_but_the_last_is_left_on_disk_during_a_job(stage: Stage, tmp_path: Path) -> None:
    seen: list[int] = []

    def train(model: Arrays, task: Task) -> Update:
        seen.append(len(list((tmp_path / "out" / ".models").iterdir())))
        return adding(1.0)(model, task)

    stage.open(wait_for=1, clients=1, rounds=5, out=tmp_path / "out")
    stage.client("client-1", train)
    assert mean_of(stage.result()) == {5.0}
    assert max(seen) <= 2


def test_a_model_that_no_welcome_can_describe_is_refused_at_once(stage: Stage) -> None:
    job = stage.contract({"train": "weights"})
    spec = ModelSpec(tuple(TensorSpec(f"layer.{number}.{'x' * 50}", "float32", (1,)) for number in range(60_000)))
    with pytest.raises(
        JobError, match=r"the names and shapes of 60000 tensors take [\d,]+ bytes, and a client is told"
    ):
        Federation(job, spec)
