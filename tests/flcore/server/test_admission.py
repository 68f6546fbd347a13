"""Who may join: strangers learn nothing, heavy contracts cost little, an invited client learns what differs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from flcore import ContractMismatch, NotInvited
from flcore.job.job import Job
from flcore.job.messages import AgentJoinContent, JoinContent, MalformedMessage
from flcore.job.parsing import parse_contract
from flcore.server.admission import Admission
from flcore.version import __version__

CONTRACT = {
    "name": "job",
    "clients": ["hospital-a", "hospital-b"],
    "server": {"model": "code.py:model", "rounds": 3},
    "client": {"executor": "code.py", "hyperparameters": {"secret_rate": 0.123}},
    "tasks": {"train": {"returns": "weights"}},
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(parse_contract(CONTRACT, "here"), tmp_path)


def join(contract: str) -> bytes:
    return JoinContent(contract=contract, code_digest="", version="").to_bytes()


def test_a_client_with_the_same_contract_is_let_in(job: Job) -> None:
    Admission(job).require("hospital-a", join(job.contract.to_json()))


@pytest.mark.parametrize("name", ["stranger", "hospital-a\n", "", "x" * 1000, "\x1b[2J"])
def test_a_stranger_learns_that_it_is_not_invited_and_nothing_else(job: Job, name: str) -> None:
    for content in (join("{}"), join(job.contract.to_json()), b"no JSON"):
        with pytest.raises(NotInvited) as caught:
            Admission(job).require(name, content)
        said = str(caught.value)
        assert len(said) < 200 and said.isprintable()
        assert not [word for word in ("hospital-b", "secret", "0.123", "code.py") if word in said]


def test_an_invited_client_is_told_what_differs(job: Job) -> None:
    other = json.loads(job.contract.to_json())
    other["server"]["rounds"] = 5
    with pytest.raises(ContractMismatch, match=r"server\.rounds: the server has 3, the client has 5"):
        Admission(job).require("hospital-a", join(json.dumps(other)))


def test_an_agent_of_a_standing_federation_is_told_which_server_this_is_and_what_to_start(job: Job) -> None:
    with pytest.raises(MalformedMessage) as caught:
        Admission(job).require("hospital-a", AgentJoinContent(version="").to_bytes())
    assert str(caught.value) == (
        "client 'hospital-a': this server runs one job, 'job', and this client was started without a job, for a "
        "standing federation; start it with the job's directory: flcore client JOB"
    )


@pytest.mark.parametrize("content", [b"", b"no JSON", b"{}", b'{"contract": 1}'])
def test_a_join_of_another_version_is_told_the_servers_version(job: Job, content: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        Admission(job).require("hospital-a", content)
    assert str(caught.value).endswith(f"use the version of flcore that the server has, {__version__}")


def heavy(job: Job) -> dict[str, bytes]:
    contract = json.loads(job.contract.to_json())
    wide: dict[str, Any] = {**contract, **{f"k{number}": 0 for number in range(60_000)}}
    return {
        "60,000 keys": join(json.dumps(wide)),
        "25,000 bad tasks": join(
            json.dumps({**contract, "tasks": {f"t{n}": {"returns": "bad"} for n in range(25_000)}})
        ),
        "9,999 names": join(json.dumps({**contract, "clients": [f"c{number:04}" for number in range(9999)]})),
        "a deep contract": join("[" * 400_000),
        "deep tables": join('{"a":' * 100_000 + "1" + "}" * 100_000),
        "no JSON": join("x" * 900_000),
        "a long value": join(json.dumps({**contract, "name": "x" * 900_000})),
    }


@pytest.mark.parametrize(
    "name",
    ["60,000 keys", "25,000 bad tasks", "9,999 names", "a deep contract", "deep tables", "no JSON", "a long value"],
)
def test_heavy_contracts_cost_little_and_are_answered_in_a_few_lines(job: Job, name: str) -> None:
    content = heavy(job)[name]
    began = time.process_time()
    with pytest.raises((ContractMismatch, MalformedMessage)) as caught:
        Admission(job).require("hospital-a", content)
    assert time.process_time() - began < 2.0
    assert len(str(caught.value)) < 10_000
    assert all(line.isprintable() for line in str(caught.value).splitlines())
