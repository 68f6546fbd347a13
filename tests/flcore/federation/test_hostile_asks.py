"""Asks of members that mean harm: each is refused with its reason, in bounds, and the federation goes on."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flcore_transport import Ask, GrpcConnection, Refused
from flcore_transport.messages import MAX_ASK_CONTENT_BYTES

from flcore.federation.messages import (
    Done,
    FileList,
    JobList,
    JobQueued,
    ListFiles,
    ListJobs,
    SiteLog,
    SubmitJob,
)
from tests.flcore.federation.small_federation import Federation, packed, write_job

ROLES = ("lead", "client", "admin", "none")
DEEP = b"[" * 100_000 + b"]" * 100_000
DIGEST = b"0" * 64


def request(**fields: Any) -> bytes:
    """The content of a request, valid or not."""
    return json.dumps({"request": fields}).encode()


def longest(head: bytes, item: bytes, tail: bytes) -> bytes:
    """As many items, with commas between them, as an ask takes."""
    count = (MAX_ASK_CONTENT_BYTES - len(head) - len(tail)) // (len(item) + 1)
    return head + b",".join([item] * count) + tail


MALFORMED = {
    "nothing": b"",
    "no object": b"[]",
    "no UTF-8": b'{"request": {"do": "show", "id": "\xff\xfe-1"}}',
    "a lone surrogate": b'{"request": {"do": "read-file", "id": "small-1", "name": "\\ud800", "offset": 0}}',
    "deep JSON": DEEP,
    "a deep id": b'{"request": {"do": "show", "id": ' + DEEP + b"}}",
    "deep changes": b'{"request": {"do": "submit", "digest": "' + DIGEST + b'", "changes": {"a": ' + DEEP + b"}}}",
    "a key twice": b'{"request": {"do": "show", "id": "small-1", "id": "small-2"}}',
    "another key": request(do="show", id="small-1", path="/"),
    "no request": request(do="__class__", id="small-1"),
    "a request in a list": b'{"request": [{"do": "list"}]}',
    "200,000 digits": b'{"request": {"do": "list", "limit": ' + b"9" * 200_000 + b"}}",
    "a limit below 1": request(do="list", limit=-1),
    "a number as text": request(do="list", limit="100"),
    "true as a number": request(do="list", limit=True),
    "as many states as fit": longest(b'{"request": {"do": "list", "states": [', b'"done"', b"]}}"),
    "as many wrong states as fit": longest(b'{"request": {"do": "list", "states": [', b"0", b"]}}"),
    "as many keys as fit": longest(b'{"request": {"do": "clone", "id": "small-1", "changes": {', b'"a": 1', b"}}}"),
    "65 changes": request(do="clone", id="small-1", changes={f"k{number}": 1 for number in range(65)}),
    "a task of 65 characters": request(
        do="site-progress", id="small-1", progress={"task": "t" * 65, "round": 1, "done": 1, "total": 1}
    ),
    "a digest that is a path": request(do="put-pack", digest="../" * 21 + "x", nbytes=1, offset=0),
    "a digest in capitals": request(do="put-pack", digest="A" * 64, nbytes=1, offset=0),
    "a negative offset": request(do="read-file", id="small-1", name="run/run.json", offset=-1),
    "an offset beyond 62 bits": request(do="read-log", id="small-1", offset=1 << 62),
    "a pack of no bytes": request(do="put-pack", digest="0" * 64, nbytes=0, offset=0),
}
INVALID_IDS = ["", "small", "small-0", "small-01", "../small-1", "small-1/..", "small-1\n", "small-\u0661", "s" * 70]
INVALID_IDS += [".-1", "small-1\0", "small-1%", "SMALL-1 OR 1=1", "small-9999999999999999999", "%2e%2e-1"]
UNKNOWN_IDS = ["SMALL-1", "small-3", "small-999999999999999999", "a.b-1", "small-x-1", "small--1", "s" * 64 + "-1"]
BY_ID: dict[str, dict[str, Any]] = {
    "show": {},
    "clone": {},
    "wait": {"state": "queued", "round": 10**300},
    "read-log": {"client": "north", "wait": True},
    "abort": {},
    "delete": {},
    "list-files": {"after": "\0"},
    "read-file": {"name": "server.log", "offset": 0},
}
"""All requests with a job's id, with fields that are valid otherwise."""
PATHS = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../../federation.sqlite",
    "../small-2/server.log",
    "run/../server.log",
    "run//run.json",
    "./server.log",
    "server.log/",
    "server.log\0",
    "SERVER.LOG",
    "job/code.py",
    "run/state.sqlite",
    "run/.updates",
    "run/.clients/north",
    "sites/../server.log",
    "sites",
    "sites/*",
    "~/server.log",
    "run\\run.json",
    "%2e%2e/server.log",
    "x" * 200_000,
]


@pytest.fixture
def jobs(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, str, str]:
    """A federation with two queued jobs, one each of alice and of bob; each has a log of north."""
    pack = packed(write_job(tmp_path_factory.mktemp("jobs") / "small"))
    ids = [federation.person(name).submit(pack) for name in ("alice", "bob")]
    for job_id in ids:
        federation.person("north", "client").ask(SiteLog(id=job_id), Done, b"a line\n")
    return federation, ids[0], ids[1]


def refusal(call: Callable[..., object], *arguments: object) -> Refused:
    """What a call is refused with, which is short and names no path of the server."""
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert len(str(caught.value)) < 3_000
    return caught.value


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_ask_is_refused_to_every_role(federation: Federation, content: bytes) -> None:
    (federation.directory / "roles.toml").write_text('[lead]\neve-none = "none"\n')
    for role in ROLES:
        person = federation.person(f"eve-{role}", "lead" if role == "none" else role)
        began = time.process_time()
        assert refusal(person.send, Ask(content)).kind == "malformed"
        assert time.process_time() - began < 1.0
    assert (federation.directory / "audit.jsonl").read_text().count('"kind":"malformed"') == len(ROLES)
    assert federation.person("alice").ask(ListJobs(states=["done"]), JobList)[0].jobs == []


def test_ids_that_are_none_and_ids_of_no_job(jobs: tuple[Federation, str, str]) -> None:
    federation, own, _ = jobs
    for number, (do, fields) in enumerate(BY_ID.items()):
        lead = federation.person(f"eve-{number}")
        for ids, kind in ((INVALID_IDS, "malformed"), (UNKNOWN_IDS, "no-such-id")):
            assert {refusal(lead.send, Ask(request(do=do, id=each, **fields))).kind for each in ids} == {kind}
    assert federation.person("alice").show(own).summary.state == "queued"


def test_nobody_handles_the_job_of_somebody_else(jobs: tuple[Federation, str, str]) -> None:
    federation, _, of_bob = jobs
    (federation.directory / "roles.toml").write_text('[lead]\nnobody = "none"\n')
    seen_by_all = {"show", "wait"}
    callers = {"alice": "lead", "nobody": "lead", "bob": "client", "north": "client"}
    for name, role in callers.items():
        for do, fields in BY_ID.items():
            if name == "alice" and do in seen_by_all:
                continue
            error = refusal(federation.person(name, role).send, Ask(request(do=do, id=of_bob, **fields)))
            assert error.kind == "not-allowed", (name, do)
    bob = federation.person("bob")
    assert bob.show(of_bob).summary.state == "queued"
    assert [file.name for file in bob.ask(ListFiles(id=of_bob), FileList)[0].files] == ["sites/north.log"]


def test_sites_that_are_not_of_a_job_write_no_logs(jobs: tuple[Federation, str, str]) -> None:
    federation, own, _ = jobs
    (federation.directory / "roles.toml").write_text('[client]\nsouth = "none"\n')
    callers = [("east", "client", "east"), ("east", "client", "north"), ("south", "client", "south")]
    callers += [("north", "client", "../north"), ("north", "client", "north\n"), ("alice", "lead", "north")]
    progress = {"task": "train", "round": 1, "done": 1.0, "total": 1.0}
    for name, role, claimed in callers:
        send = federation.person(name, role).send
        assert refusal(send, Ask(request(do="site-log", id=own, client=claimed), b"forged\n")).kind == "not-allowed"
        report = request(do="site-progress", id=own, client=claimed, progress=progress)
        assert refusal(send, Ask(report)).kind == "not-allowed"
    logs = federation.directory / "jobs" / own / "sites"
    assert [(path.name, path.read_bytes()) for path in logs.iterdir()] == [("north.log", b"a line\n")]


def test_names_of_files_lead_nowhere_else(jobs: tuple[Federation, str, str]) -> None:
    federation, own, _ = jobs
    alice = federation.person("alice")
    for name in PATHS:
        error = refusal(alice.send, Ask(request(do="read-file", id=own, name=name, offset=0)))
        assert error.kind == "no-such-file" and str(federation.directory) not in str(error), name
    for client in (".", "..", "north/../north", "../server", "north\0", "n" * 200_000):
        content = request(do="read-log", id=own, client=client, wait=True)
        assert refusal(alice.send, Ask(content)).kind == "no-such-file", client


@pytest.mark.parametrize(
    "changes",
    [
        {"client": 3, "tasks.train.hyperparameters.x": 1},
        {"client.hyperparameters": 3, "tasks.train.hyperparameters.x": 1},
        {"tasks": [], "tasks.train.hyperparameters.x": 1},
        {"client.hyperparameters.x": 1},
        {"": 1},
        {"." * 100_000: 1},
        {"x" * 200_000: 1},
        {"__class__": 1},
        {"clients": ["../north"]},
        {"clients": ["north"] * 2},
        {"name": "../small"},
        {"name": "small\n"},
        {"client.executor": "../../../etc/passwd"},
        {"server.model": "/etc/passwd"},
        {"server.rounds": 10**300},
        {"server.deadline_s": float("nan")},
        {"server.deadline_s": float("inf")},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_changes_that_mean_harm_are_refused(jobs: tuple[Federation, str, str], changes: dict[str, Any]) -> None:
    federation, own, _ = jobs
    alice = federation.person("alice")
    error = refusal(alice.send, Ask(request(do="clone", id=own, changes=changes)))
    assert error.kind == "bad-job" and str(federation.directory) not in str(error)
    digest = alice.show(own).pack_digest
    error = refusal(alice.ask, SubmitJob(digest=digest, changes=changes), JobQueued)
    assert error.kind == "bad-job"
    assert len(alice.ask(ListJobs(), JobList)[0].jobs) == 2


def test_oversized_asks_are_refused_on_the_wire(federation: Federation) -> None:
    connection = GrpcConnection(federation.server.address)
    try:
        with pytest.raises(Refused) as caught:
            connection.ask(Ask(bytes(MAX_ASK_CONTENT_BYTES + 1)))
        assert caught.value.kind == "too-large"
        assert refusal(connection.ask, Ask(b" " * MAX_ASK_CONTENT_BYTES)).kind == "malformed"
        assert refusal(connection.ask, Ask(b"{}", bytes(1 << 20))).kind == "malformed"
    finally:
        connection.close()
