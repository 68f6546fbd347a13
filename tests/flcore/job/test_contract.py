"""The contract: what is sound, where everything else is wrong, and how two contracts differ."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from flcore import Job, JobError
from flcore.aggregation.storage import Storage
from flcore.client.executor import require_tasks
from flcore.job.contract import Contract, differences
from flcore.job.messages import AnswerContent, JoinContent, MalformedMessage, parse_content
from flcore.job.parsing import parse_contract
from flcore.workflows.bundled import load_workflow

SOUND: dict[str, Any] = {
    "name": "sound",
    "seed": 3,
    "clients": ["a", "b", "c"],
    "server": {"model": "train.py:initial_model", "rounds": 10, "quorum": 2},
    "client": {"executor": "train.py", "hyperparameters": {"lr": 0.1, "momentum": 0.9}},
    "tasks": {
        "train": {
            "returns": "weights",
            "hyperparameters": {"epochs": 1},
            "schedule": [
                {"from_round": 8, "hyperparameters": {"lr": 0.001}},
                {"from_round": 5, "hyperparameters": {"lr": 0.01, "epochs": 2}},
            ],
        }
    },
}


def changed(place: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(SOUND)
    *tables, key = place.split(".")
    table = content
    for name in tables:
        table = table.setdefault(name, {})
    if value is None:
        del table[key]
    else:
        table[key] = value
    return content


def test_a_contract_is_frozen_and_its_fingerprint_is_of_what_it_says() -> None:
    contract = parse_contract(SOUND, "here")
    with pytest.raises(ValidationError, match="frozen"):
        contract.seed = 4
    assert contract.fingerprint == parse_contract(changed("server.fraction", 1.0), "there").fingerprint
    assert contract.fingerprint != parse_contract(changed("seed", 4), "there").fingerprint
    assert Contract.model_validate_json(contract.to_json()) == contract


def test_an_alias_of_a_dtype_is_the_same_contract() -> None:
    short, whole = (parse_contract(changed("wire.upload", dtype), "here") for dtype in ("bf16", "bfloat16"))
    assert short.wire.upload == "bfloat16" and short.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("server.round", 3, "here: server.round: there is no such key; did you mean 'server.rounds'\\?$"),
        ("rounds", 3, "here: rounds: there is no such key; did you mean 'server.rounds'\\?$"),
        ("tasks.train.retuns", 3, "tasks.train.retuns: there is no such key; did you mean 'tasks.train.returns'\\?$"),
        ("bounds.strange", 3, "bounds.strange: there is no such key$"),
        ("server.controller", "fed_avg", "no such key; it is called server.workflow now$"),
        ("server.rounds", "ten", "here: server.rounds: input should be a valid integer, not 'ten'"),
        ("server.rounds", 0, "server.rounds: .* greater than or equal to 1, not 0"),
        ("server.rounds", None, "server.rounds: field required"),
        ("server.rule", "krim", "server.rule: rule 'krim' does not exist; expected one of mean"),
        ("server.quorum", 4, "server.quorum = 4 is more than the 3 clients"),
        ("server.close_at", 1, "close_at = 1 would close a round before its quorum of 2"),
        ("server.fraction", 1.5, "server.fraction: .* less than or equal to 1"),
        ("server.best", "accuracy", "server.best: "),
        ("server.best", "accuracy:max", "needs a task that returns metrics"),
        ("server.deadline_s", -1, "server.deadline_s"),
        ("clients", ["a", "a"], "each once"),
        ("clients", [], "at least one name"),
        ("clients", ["a/b"], "clients"),
        ("seed", -1, "seed"),
        ("seed", True, "seed"),
        ("name", "a b", "name: string should match"),
        ("client.executor", "train", "client.executor"),
        ("tasks.train.returns", "gradients", "tasks.train.returns"),
        ("tasks.train-it", {"returns": "weights"}, "tasks.train-it"),
        ("tasks", None, "tasks: field required"),
        ("bounds.max_abs", float("inf"), "JSON can hold"),
        ("bounds.max_metrics", 1.5, "bounds.max_metrics"),
    ],
)
def test_each_error_names_its_key(place: str, value: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_contract(changed(place, value), "here")


def test_an_empty_contract_is_one_line() -> None:
    with pytest.raises(JobError) as caught:
        parse_contract({}, "here")
    assert str(caught.value).startswith(
        "here: expected the keys name, clients, server, client, tasks, which are missing"
    )
    assert "\n" not in str(caught.value)


def test_all_errors_are_listed() -> None:
    content = changed("server.rounds", "ten") | {"sed": 3}
    with pytest.raises(JobError) as caught:
        parse_contract(content, "here")
    assert len(str(caught.value).splitlines()) == 2


def test_hyperparameters_follow_task_and_round() -> None:
    contract = parse_contract(SOUND, "here")
    assert contract.hyperparameters("train", 1) == {"lr": 0.1, "momentum": 0.9, "epochs": 1}
    assert contract.hyperparameters("train", 5) == {"lr": 0.01, "momentum": 0.9, "epochs": 2}
    assert contract.hyperparameters("train", 9) == {"lr": 0.001, "momentum": 0.9, "epochs": 2}


def test_clients_are_a_list_or_a_number() -> None:
    listed, counted = parse_contract(SOUND, "here"), parse_contract(changed("clients", 12), "here")
    assert listed.client_names == ("a", "b", "c")
    assert listed.may_join("b") and not listed.may_join("d")
    assert counted.client_names[0] == "client-01" and len(counted.client_names) == 12
    assert counted.may_join("anyone.at-all") and not counted.may_join("../etc") and not counted.may_join("a\n")


def test_two_contracts_are_told_apart_key_by_key() -> None:
    ours, theirs = parse_contract(SOUND, "here"), parse_contract(changed("server.rounds", 9) | {"seed": 4}, "there")
    assert differences(json.loads(ours.to_json()), json.loads(theirs.to_json())) == [
        "seed: the server has 3, the client has 4",
        "server.rounds: the server has 10, the client has 9",
    ]
    more = parse_contract(changed("client.hyperparameters.decay", 0.5), "there")
    found = differences(json.loads(ours.to_json()), json.loads(more.to_json()))
    assert found == ["client.hyperparameters.decay: the server has nothing, the client has 0.5"]


def write(directory: Path, toml: str, python: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "job.toml").write_text(toml)
    (directory / "train.py").write_text(python)
    return directory


TOML = """
name = "small"
clients = 2
[server]
model = "train.py:initial_model"
rounds = 1
[client]
executor = "train.py"
[tasks.train]
returns = "weights"
"""


def test_a_job_is_a_directory_a_file_or_a_bundled_name(tmp_path: Path) -> None:
    directory = write(tmp_path / "job", TOML)
    assert Job.load(directory) == Job.load(directory / "job.toml")
    assert Job.load(directory, rounds=7, seed=9, clients=3).contract.server.rounds == 7
    assert Job.load("digits").contract.name == "digits"
    with pytest.raises(JobError, match=r"no job at .*nowhere.*bundled job \(digits\)"):
        Job.load("nowhere")


def test_files_that_are_no_contract_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job\.toml: expected TOML: Invalid value"):
        Job.load(write(tmp_path / "a", "name = "))
    with pytest.raises(JobError, match="a date"):
        Job.load(write(tmp_path / "b", "name = 2026-01-01\n"))
    with pytest.raises(JobError, match="expected TOML: maximum recursion"):
        Job.load(write(tmp_path / "c", "name = " + "{a=" * 2_000 + "1" + "}" * 2_000))
    with pytest.raises(JobError, match="expected tables in a few levels, got too many"):
        Job.load(write(tmp_path / "d", ".".join("a" * 2_000) + " = 1\n"))


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("", "server.model: train.py has no 'initial_model'"),
        ("import nothing_like_this", "server.model: .*train.py cannot be loaded: No module named"),
        ("def initial_model(: pass", "server.model: .*train.py cannot be loaded"),
        ("def initial_model(seed): return 3", "returned int, expected a mapping"),
        ("def initial_model(seed): return {}", "returned no model: a model has at least one tensor"),
        ("def initial_model(seed): return {'w': [1]}", "'w': expected an array of NumPy, PyTorch, JAX or CuPy"),
    ],
)
def test_a_first_model_that_cannot_be_made_is_refused(tmp_path: Path, python: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job.load(write(tmp_path / "job", TOML, python)).initial_model()


def test_the_first_model_may_be_a_checkpoint(tmp_path: Path) -> None:
    import flcore

    directory = write(tmp_path / "job", TOML.replace("train.py:initial_model", "start.safetensors"))
    with pytest.raises(JobError, match=r"there is no file .*start\.safetensors"):
        Job.load(directory).initial_model()
    flcore.save({"w": np.arange(3.0)}, directory / "start.safetensors")
    assert Storage().copy_model(Job.load(directory).initial_model()).arrays()["w"].tolist() == [0, 1, 2]


def test_a_job_may_import_its_neighbours(tmp_path: Path) -> None:
    directory = write(tmp_path / "job", TOML, "from neighbour_of_train import initial_model")
    (directory / "neighbour_of_train.py").write_text(
        "import numpy as np\ndef initial_model(seed): return {'w': np.full(2, seed)}"
    )
    assert Storage().copy_model(Job.load(directory, seed=5).initial_model()).arrays()["w"].tolist() == [5, 5]


def test_the_code_digest_follows_the_code(tmp_path: Path) -> None:
    directory = write(tmp_path / "job", TOML, "a = 1")
    before = Job.load(directory).code_digest
    (directory / "notes.txt").write_text("no code")
    assert Job.load(directory).code_digest == before
    (directory / "train.py").write_text("a = 2")
    assert Job.load(directory).code_digest != before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("server.model", "trian.py:initial_model", r"there is no file .*trian\.py; did you mean 'train\.py'\?"),
        ("server.model", "train.py:inital_model", r"train\.py has no 'inital_model'; did you mean 'initial_model'\?"),
        ("server.model", "train.py:play", r"train\.py has no 'play'; write it there, or correct the name"),
        ("server.model", "begin.safetensors", r"no file .*begin\.safetensors; did you mean 'beginn\.safetensors'\?"),
        ("server.model", "other.safetensors", r"no file .*; correct the name, or put the file there"),
        ("client.executor", "trian.py", r"client\.executor: there is no file .*; did you mean 'train\.py'\?"),
        ("client.executor", "odd.py", r"has no function 'train', which tasks\.train needs; did you mean 'trian'\?"),
    ],
)
def test_a_file_or_function_that_does_not_exist_is_told_with_the_nearest(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    directory = write(tmp_path / "job", TOML, "def initial_model(seed): return {'w': [1]}\ndef train(): pass\n")
    (directory / "odd.py").write_text("train = 3\ndef trian(model, task): pass\n")
    (directory / "beginn.safetensors").touch()
    job = Job.load(directory).with_changes({key: value})
    with pytest.raises(JobError, match=message):
        job.initial_model() if key == "server.model" else require_tasks(job)


@pytest.mark.parametrize(
    ("workflow", "message"),
    [
        ("fed_prox", "expected a bundled workflow .* got 'fed_prox'"),
        ("train.py:play", "has no 'play'"),
        ("train.py:number", "expected a function"),
    ],
)
def test_a_workflow_that_does_not_exist_is_refused(tmp_path: Path, workflow: str, message: str) -> None:
    toml = TOML.replace("rounds = 1", f'rounds = 1\nworkflow = "{workflow}"')
    with pytest.raises(JobError, match=message):
        load_workflow(Job.load(write(tmp_path / "job", toml, "number = 3")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the message"),
        (b"[]", "the message"),
        (b'{"returns": "weights"}', "weight: Field required"),
        (b'{"returns": "weights", "weight": "1"}', "weight"),
        (b'{"returns": "weights", "weight": 1, "extra": 1}', "extra"),
        (b'{"returns": "votes", "weight": 1}', "returns"),
        (b'{"returns": "weights", "weight": 1, "metrics": [1]}', "metrics"),
        (b"\xff\xfe", "the message"),
        (b"[" * 100_000, "the message"),
        (b'{"returns": "weights", "weight": 1, "weight": 2}', "one meaning: 'weight' appears twice"),
        (b'{"returns": "weights", "weight": 1, "metrics": {"a": 1, "a": 2}}', "one meaning: 'a' appears twice"),
        (b'{"returns": "weights", "weight": 1, "upload_id": "1f"}', "'upload_id' is no key"),
        (
            b'{"returns": "weights", "weight": 1, ' + b",".join(b'"%d": 1' % key for key in range(70)) + b"}",
            "70 keys or",
        ),
    ],
)
def test_malformed_messages_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(MalformedMessage, match=message):
        parse_content(AnswerContent, content)


def test_white_space_the_order_of_keys_and_left_out_defaults_are_free() -> None:
    answer = parse_content(AnswerContent, b' {"weight": 2,\n"returns": "delta", "attempt": "1f"}')
    assert answer == AnswerContent(returns="delta", upload_id="1f", weight=2.0)


@pytest.mark.parametrize(
    "members",
    [
        b",".join(b'"%x":1' % key for key in range(90_000)),
        b'"tensors":[' + b",".join([b"[1,1,1]"] * 120_000) + b"]",
        b'"tensors":[' + b",".join([b'["","",[' + b",".join([b'""'] * 64) + b"]]"] * 4_700) + b"]",
    ],
)
def test_a_large_content_that_is_wrong_everywhere_takes_little_memory(members: bytes) -> None:
    content = b'{"returns":"delta","weight":1,' + members + b"}"
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            parse_content(AnswerContent, content)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # one error object for each fault took 100 MiB
    finally:
        tracemalloc.stop()


def test_messages_survive_the_journey_not_a_number_too() -> None:
    message = AnswerContent(returns="weights", weight=float("nan"), metrics={"loss": float("-inf")})
    parsed = parse_content(AnswerContent, message.to_bytes())
    assert np.isnan(parsed.weight) and parsed.metrics == {"loss": float("-inf")}
    join = JoinContent(contract="{}", code_digest="ab", version="1")
    assert parse_content(JoinContent, join.to_bytes()) == join


def test_an_answer_keeps_its_bytes_on_the_wire() -> None:
    answer = AnswerContent(returns="weights", upload_id="1f", weight=2.0, spec_fingerprint="ab")
    on_wire = b'{"returns":"weights","attempt":"1f","weight":2.0,"metrics":{},"fingerprint":"ab","tensors":null}'
    assert answer.to_bytes() == on_wire
    assert parse_content(AnswerContent, on_wire) == answer
