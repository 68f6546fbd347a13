"""Changes of a contract by dotted keys, from Python and from a command line."""

import json
import time
from typing import Any

import pytest

from flcore import Job, JobError
from flcore.job.changes import change_contract, parse_change
from flcore.job.contract import Contract

JOB = Job.load("digits")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("server.rounds=20", "server.rounds", 20),
        ("server.rounds = 20 ", "server.rounds", 20),
        ("server.fraction=0.5", "server.fraction", 0.5),
        ("same_code=true", "same_code", True),
        ('server.rule="mean"', "server.rule", "mean"),
        ("server.rule=unweighted_mean", "server.rule", "unweighted_mean"),
        ("server.best=accuracy:max", "server.best", "accuracy:max"),
        ('clients=["north", "south"]', "clients", ["north", "south"]),
        ("tasks.train.hyperparameters={ rate = 0.5 }", "tasks.train.hyperparameters", {"rate": 0.5}),
        ("a=b=c", "a", "b=c"),
        ("a=1 # more", "a", 1),
        ("a=True", "a", "True"),  # not of TOML: a string, which the contract refuses where it expects a boolean
    ],
)
def test_a_change_of_the_command_line(text: str, key: str, value: object) -> None:
    assert parse_change(text) == (key, value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected KEY=VALUE, such as server.rounds=20, got ''"),
        ("server.rounds", "expected KEY=VALUE"),
        ("=20", "expected KEY=VALUE"),
        ("server.rounds=", "expected KEY=VALUE"),
        ("a=1\nb=2", "expected one key"),
        ("a=x\nb=2", "a: expected a value of TOML"),
        ("a=[1, 2", "a: expected a value of TOML"),
        ("a={x}", "a: expected a value of TOML"),
        ("a='x", "a: expected a value of TOML"),
        ("a=2020-01-01", "a: expected a value that JSON can hold"),
        ("a=nan", "a: expected a value that JSON can hold"),
        ("a=" + "[" * 5_000, "a: expected a value of TOML"),
        ("\33[2J", r"got '\\\\x1b\[2J'"),
    ],
)
def test_no_change(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        parse_change(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"server.rounds": 20}, lambda contract: contract.server.rounds == 20),
        ({"seed": 3, "server.close_at": 4}, lambda contract: (contract.seed, contract.server.close_at) == (3, 4)),
        ({"server.best": None}, lambda contract: contract.server.best is None),
        ({"clients": 4}, lambda contract: contract.clients == 4),
        ({"clients": ["a", "b"]}, lambda contract: contract.clients == ("a", "b")),
        ({"server.deadline_s": 600}, lambda contract: contract.server.deadline_s == 600.0),
        ({"wire.upload": "float16"}, lambda contract: contract.wire.upload == "float16"),
        ({"tasks.train.hyperparameters.epochs": 7}, lambda c: c.tasks["train"].hyperparameters["epochs"] == 7),
        ({"tasks.train.hyperparameters": {"new": 7}}, lambda c: c.tasks["train"].hyperparameters == {"new": 7}),
        (
            {"client.hyperparameters": {"x": {"y": 1}}, "client.hyperparameters.x.y": 2},
            lambda c: c.client.hyperparameters == {"x": {"y": 2}},
        ),
        (
            {"client.hyperparameters": {"x": 1}, "tasks.train.hyperparameters.x": 2},
            lambda c: c.hyperparameters("train", 1)["x"] == 2,
        ),
        ({"server.quorum": 5, "server.close_at": 6}, lambda c: c.server.quorum == 5),
    ],
)
def test_a_changed_contract(changes: dict[str, Any], expected: Any) -> None:
    contract = JOB.with_changes(changes).contract
    assert expected(contract)
    assert contract.fingerprint != JOB.contract.fingerprint


def test_no_changes_are_the_same_contract() -> None:
    assert change_contract(JOB.contract, {}) is JOB.contract
    same = change_contract(JOB.contract, {"server.rounds": JOB.contract.server.rounds})
    assert same.fingerprint == JOB.contract.fingerprint


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("server.round", "server.rounds"),
        ("rounds", "server.rounds"),
        ("Server.rounds", "server.rounds"),
        ("server.rounds.x", "server.rounds"),
        ("tasks.trian.returns", "tasks.train.returns"),
        ("tasks.train.hyperparameters.learningrate", "tasks.train.hyperparameters.learning_rate"),
        ("tasks.other.returns", "tasks.train.returns"),
        ("tasks.train.schedule.0.from_round", "tasks.train.schedule"),
        ("bounds.max_weights", "bounds.max_weight"),
        ("server..rounds", "server.rounds"),
        ("tasks.validates.returns", "tasks.validate.returns"),
    ],
)
def test_a_key_that_does_not_exist(key: str, nearest: str) -> None:
    with pytest.raises(JobError) as caught:
        JOB.with_changes({key: 1})
    assert str(caught.value) == f"{key}: expected a key of the job's contract; the nearest one is {nearest}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"server.rounds": 0},
            "the changed contract: server.rounds: input should be greater than or equal to 1, not 0",
        ),
        ({"server.rounds": "x"}, "server.rounds: input should be a valid integer, not 'x'"),
        ({"server.quorum": 9}, "server.quorum = 9 is more than the 6 clients"),
        ({"server": {}}, "expected the keys server.model, server.rounds, which are missing"),
        ({"server.deadline_s": float("nan")}, "expected values that JSON can hold"),
        ({"client": 3, "tasks.train.hyperparameters.x": 1}, "tasks.train.hyperparameters.x: expected a key of"),
        ({"client.hyperparameters": 3, "tasks.train.hyperparameters.x": 1}, "hyperparameters.x: expected a key of"),
    ],
)
def test_a_value_that_the_contract_refuses(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        JOB.with_changes(changes)


def test_a_key_of_another_machine_takes_no_time() -> None:
    content = json.loads(JOB.contract.to_json())
    content["client"]["hyperparameters"] = {"k" * 80 + str(number): 1 for number in range(20_000)}
    contract = Contract.model_validate_json(json.dumps(content))
    began = time.process_time()
    for key in ("server." * 40_000, "x" * 250_000, "k" * 90):
        with pytest.raises(JobError, match="the nearest one is") as caught:
            change_contract(contract, {key: 1})
        assert len(str(caught.value)) < 400
    assert time.process_time() - began < 5
