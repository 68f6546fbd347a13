"""Which jobs a site runs: a table of offers, and of what is refused with which key."""

import re
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from flcore import JobError
from flcore.agent.site_policy import Admitted, LocalJob, NoPlace, PackFacts, PackNeeded, Refusal, SitePolicy
from flcore.agent.site_rules import parse_site_rules
from flcore.federation.lobby_messages import JobOffer
from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract

CODE, OTHER_CODE = "c" * 64, "d" * 64
NOON, NIGHT = time(12, 0), time(23, 30)


def contract(**changes: Any) -> Contract:
    content: dict[str, Any] = {
        "name": "digits",
        "clients": 3,
        "server": {"model": "digits.py:init", "rounds": 10},
        "client": {"executor": "digits.py", "hyperparameters": {"lr": 0.1}},
        "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
    }
    for key, value in changes.items():
        table, _, last = key.replace("__", ".").rpartition(".")
        place = content
        for name in filter(None, table.split(".")):
            place = place[name]
        place[last] = value
    return parse_contract(content, "the test's")


def offer(of: Contract, **changes: Any) -> JobOffer:
    values: dict[str, Any] = {
        "id": f"{of.name}-1",
        "name": of.name,
        "contract": of.to_json(),
        "contract_fingerprint": of.fingerprint,
        "code_digest": CODE,
        "pack_digest": "a" * 64,
        "pack_nbytes": 1000,
    }
    return JobOffer(**values | changes)


def local(of: Contract | None = None, code: str = CODE, place: str = "one") -> LocalJob:
    return LocalJob(Path(place), of or contract(), code)


@dataclass
class Case:
    """An offer to a site with some rules, and what comes of it: a directory, "pack", or words of the refusal."""

    comes: str
    rules: dict[str, Any] = field(default_factory=dict)
    of: Contract = field(default_factory=contract)
    jobs: list[LocalJob] = field(default_factory=lambda: [local()])
    now: time = NOON
    changes: dict[str, Any] = field(default_factory=dict)


SIGNED = {"jobs": "signed", "signers": ["alice.pub"]}
LENIENT = {"same_code": False}
NIGHTS = {"limits": {"hours": "20:00-06:00"}}
DAYS = {"limits": {"hours": "06:00-20:00"}}
OFFERS = {
    "the directory fits": Case("one"),
    "no directory": Case("job_directories: this site has no directory of a job 'digits'", jobs=[]),
    "a directory of another name": Case("job_directories: this site has no", jobs=[local(contract(name="other"))]),
    "another learning rate": Case(
        "job_directories: .*client.hyperparameters.lr differ", of=contract(client__hyperparameters__lr=0.2)
    ),
    "another executor": Case("job_directories: .*client.executor differ", of=contract(client__executor="os:system")),
    "another task": Case("job_directories: .*tasks.steal", of=contract(tasks__steal={"returns": "weights"})),
    "other rounds": Case("job_directories: .*server.rounds differ", of=contract(server__rounds=20)),
    "rounds and seed by a change": Case(
        "one", of=contract(server__rounds=20, seed=7), changes={"changes": {"server.rounds": 20, "seed": 7}}
    ),
    "a learning rate by a change": Case(
        "one",
        of=contract(client__hyperparameters__lr=0.2),
        changes={"changes": {"client.hyperparameters.lr": 0.2}},
    ),
    "another change than the offer says": Case(
        "job_directories: .*server.rounds differ",
        of=contract(server__rounds=20),
        changes={"changes": {"server.rounds": 30}},
    ),
    "an executor by a change": Case(
        "job_directories: .*cannot change client.executor",
        of=contract(client__executor="os:system"),
        changes={"changes": {"client.executor": "os:system"}},
    ),
    "a task by a change of a whole table": Case(
        "job_directories: .*cannot change tasks.steal.returns",
        of=contract(tasks={"train": {"returns": "weights"}, "steal": {"returns": "weights"}}),
        changes={"changes": {"tasks": {"train": {"returns": "weights"}, "steal": {"returns": "weights"}}}},
    ),
    "a change of a key that does not exist": Case(
        "job_directories: .*another contract: server.round",
        changes={"changes": {"server.round": 30}},
    ),
    "other clients": Case("job_directories: .*clients differ", of=contract(clients=["a", "b"])),
    "other code": Case("same_code: ", jobs=[local(code=OTHER_CODE)]),
    "other code, which the site allows": Case("one", LENIENT, jobs=[local(code=OTHER_CODE)]),
    "other code, which the contract forbids": Case(
        "same_code of the contract: ",
        LENIENT,
        of=contract(same_code=True),
        jobs=[local(contract(same_code=True), code=OTHER_CODE)],
    ),
    "two directories that fit": Case("one", jobs=[local(), local(place="two")]),
    "two with this contract, the second with this code": Case("two", jobs=[local(code=OTHER_CODE), local(place="two")]),
    "two with this contract, neither with this code": Case(
        "job_directories: 2 directories .*different code",
        LENIENT,
        jobs=[local(code=OTHER_CODE), local(code="e" * 64, place="two")],
    ),
    "two of this name, one with this contract": Case(
        "two", jobs=[local(contract(client__hyperparameters__lr=3)), local(place="two")]
    ),
    "a name that is allowed": Case("one", {"limits": {"names": ["x", "dig*"]}}),
    "a name that is not": Case("limits.names: .*'digits'", {"limits": {"names": ["Digits", "mnist*"]}}),
    "tasks that are allowed": Case("one", {"limits": {"tasks": ["validate", "train", "more"]}}),
    "a task that is not": Case("limits.tasks: .*validate", {"limits": {"tasks": ["train"]}}),
    "as many rounds as allowed": Case("one", {"limits": {"max_rounds": 10}}),
    "more rounds": Case("limits.max_rounds: .*9 rounds.*has 10", {"limits": {"max_rounds": 9}}),
    "more rounds by a change": Case(
        "limits.max_rounds: .*has 11",
        {"limits": {"max_rounds": 10}},
        of=contract(server__rounds=11),
        changes={"changes": {"server.rounds": 11}},
    ),
    "at noon, nights only": Case("limits.hours: .*20:00-06:00.*12:00", NIGHTS),
    "at night, nights only": Case("one", NIGHTS, now=NIGHT),
    "when the night begins": Case("one", NIGHTS, now=time(20, 0)),
    "after midnight": Case("one", NIGHTS, now=time(0, 0)),
    "just before the night ends": Case("one", NIGHTS, now=time(5, 59, 59)),
    "when the night has ended": Case("limits.hours: ", NIGHTS, now=time(6, 0)),
    "at night, days only": Case("limits.hours: ", DAYS, now=NIGHT),
    "at noon, days only": Case("one", DAYS),
    "signed: the pack decides": Case("pack", SIGNED),
    "signed: local directories do not count": Case("pack", SIGNED, jobs=[]),
    "signed: limits hold": Case("limits.names", SIGNED | {"limits": {"names": ["x"]}}),
    "a contract that does not parse": Case(
        "the offered contract: expected the keys name", changes={"contract": '{"nam": 1}'}
    ),
    "a contract that is no JSON": Case("the offered contract", changes={"contract": "{"}),
    "the contract of another name": Case("another name or fingerprint", changes={"name": "digit", "id": "digit-1"}),
    "another fingerprint": Case("another name or fingerprint", changes={"contract_fingerprint": "0" * 64}),
    "the id of another job": Case("is not that of a job", changes={"id": "other-1"}),
}


@pytest.mark.parametrize("name", OFFERS)
def test_offers(name: str) -> None:
    case = OFFERS[name]
    policy = SitePolicy(parse_site_rules(case.rules, "site.toml"))
    decision = policy.judge_offer(offer(case.of, **case.changes), case.now, case.jobs)
    if isinstance(decision, Refusal):
        assert "\n" not in decision.reason
        assert re.search(case.comes, decision.reason)
    else:
        assert not isinstance(decision, NoPlace)
        assert case.comes == ("pack" if isinstance(decision, PackNeeded) else str(decision.directory))


@pytest.mark.parametrize(
    ("rules", "of", "counts"), [({}, {}, True), (LENIENT, {"same_code": True}, True), (LENIENT, {}, False)]
)
def test_the_digest_of_the_admitted_code_is_kept_where_it_counts(
    rules: dict[str, Any], of: dict[str, Any], counts: bool
) -> None:
    policy, offered = SitePolicy(parse_site_rules(rules, "site.toml")), offer(contract(**of))
    job = LocalJob(Path("/digits"), contract(**of), offered.code_digest)
    kept = offered.code_digest if counts else None
    assert policy.judge_offer(offered, NOON, [job]) == Admitted(Path("/digits"), kept)


FACTS = PackFacts(contract(), True, "alice")
MORE_ROUNDS, OTHER_CODE_RUNS = contract(server__rounds=99), contract(client__executor="os:system")
PACKS: dict[str, tuple[str, PackFacts, Contract, dict[str, Any]]] = {
    "signed by a known key": ("", FACTS, contract(), {}),
    "unsigned": ('jobs = "signed": the pack has no signature', PackFacts(contract(), False, None), contract(), {}),
    "signed by an unknown key": ("signers: ", PackFacts(contract(), True, None), contract(), {}),
    "signed, with a change of rounds": ("", FACTS, MORE_ROUNDS, {"server.rounds": 99}),
    "signed, with rounds of the server's": ('jobs = "signed": .*server.rounds differ', FACTS, MORE_ROUNDS, {}),
    "signed, with an executor of the server's": (
        'jobs = "signed": .*client.executor differ',
        FACTS,
        OTHER_CODE_RUNS,
        {},
    ),
    "signed, with a change of the executor": (
        'jobs = "signed": .*cannot change client.executor',
        FACTS,
        OTHER_CODE_RUNS,
        {"client.executor": "os:system"},
    ),
    "signed, of another job": (
        'jobs = "signed": .*name differ',
        PackFacts(contract(name="other"), True, "alice"),
        contract(),
        {},
    ),
}


@pytest.mark.parametrize("name", PACKS)
def test_packs(name: str) -> None:
    reason, facts, offered, changes = PACKS[name]
    policy = SitePolicy(parse_site_rules(SIGNED, "site.toml"))
    decision = policy.judge_pack(offer(offered, changes=changes), facts)
    if reason:
        assert isinstance(decision, Refusal) and re.match(reason, decision.reason)
    else:
        assert decision is None


def test_the_reason_has_no_path_of_the_site() -> None:
    jobs = [local(code=OTHER_CODE, place="/secret/a"), local(contract(clients=9), place="/secret/b")]
    for rules in ({}, LENIENT):
        for of in (contract(), contract(clients=8)):
            decision = SitePolicy(parse_site_rules(rules, "site.toml")).judge_offer(offer(of), NOON, jobs)
            assert isinstance(decision, Admitted) or "secret" not in decision.reason  # type: ignore[union-attr]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "jobs of no kind": ({"jobs": "all"}, "site.toml: jobs: .*got 'all'"),
    "jobs as a list": ({"jobs": ["local"]}, "site.toml: jobs: "),
    "signed without signers": (SIGNED | {"signers": []}, "site.toml: signers: expected"),
    "signers as a string": ({"signers": "alice.pub"}, "site.toml: signers: "),
    "directories as numbers": ({"job_directories": [1]}, r"site.toml: job_directories.0: "),
    "same_code as a word": ({"same_code": "yes"}, "site.toml: same_code: "),
    "python as a list": ({"python": []}, "site.toml: python: "),
    "share_logs of no kind": ({"share_logs": "some"}, "site.toml: share_logs: "),
    "limits as a number": ({"limits": 3}, "site.toml: limits: "),
    "an unknown limit": ({"limits": {"name": ["x"]}}, "site.toml: limits.name: there is no such key; .*names"),
    "no names at all": ({"limits": {"names": []}}, "site.toml: limits.names: "),
    "rounds as text": ({"limits": {"max_rounds": "9"}}, "site.toml: limits.max_rounds: "),
    "rounds below one": ({"limits": {"max_rounds": 0}}, "site.toml: limits.max_rounds: "),
    "rounds as a truth value": ({"limits": {"max_rounds": True}}, "site.toml: limits.max_rounds: "),
    "hours without minutes": ({"limits": {"hours": "20-6"}}, "site.toml: limits.hours: expected two times"),
    "hours beyond the day": ({"limits": {"hours": "20:00-24:00"}}, "site.toml: limits.hours: "),
    "hours of no length": ({"limits": {"hours": "06:00-06:00"}}, "site.toml: limits.hours: .*different times"),
    "memory without a unit": ({"limits": {"memory": 8}}, "site.toml: limits.memory: "),
    "memory that is no size": ({"limits": {"memory": "much"}}, 'site.toml: limits.memory: expected .*"8GiB"'),
    "too little memory": ({"limits": {"memory": "100MiB"}}, "site.toml: limits.memory: expected at least 512MiB"),
    "decimal megabytes": (
        {"limits": {"memory": "8MB"}},
        r"site.toml: limits.memory: expected at least 512MiB.*, got '8MB'; write memory = \"512MiB\"",
    ),
    "a unit in lower case": (
        {"limits": {"memory": "16 gb"}},
        r"site.toml: limits.memory: expected .*\"8192MiB\" \(powers of 1024\).*, got '16 gb'; write memory = \"16GB\"",
    ),
    "endless memory": ({"limits": {"memory": "9" * 400 + "T"}}, "site.toml: limits.memory: "),
    "gpus as a number": ({"limits": {"gpus": 0}}, "site.toml: limits.gpus: "),
    "gpus with a blank": ({"limits": {"gpus": "0 1"}}, "site.toml: limits.gpus: "),
    "a misspelt table": ({"limit": {"names": ["x"]}}, "site.toml: limit: .*did you mean limits"),
    "a misspelt key": ({"share_log": "none"}, "site.toml: share_log: .*did you mean share_logs"),
    "a key in capitals": ({"Python": "/usr/bin/python3"}, "site.toml: Python: .*did you mean python"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_refused_with_their_key(name: str) -> None:
    content, match = WRONG[name]
    with pytest.raises(JobError, match=match) as caught:
        parse_site_rules(content, "site.toml")
    assert "\n" not in str(caught.value)


def test_the_codes_own_keys_are_free() -> None:
    content = {"path": "/data", "devices": [0], "data": {"jobs": 3, "limit": 1}, "server": {"plan": "batch"}}
    assert parse_site_rules(content, "site.toml").jobs == "local"
