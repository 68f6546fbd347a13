"""Tokens of other assignments, over any transport: from another run, round, task, attempt and client."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flcore_transport import (
    DownloadRequest,
    Failure,
    FromServer,
    GrpcConnection,
    InProcessConnection,
    Join,
    Outbox,
    Receipt,
    TaskAssignment,
    UploadRequest,
    Welcome,
)

from flcore import Aggregator, Job, Model
from flcore.job.messages import AnswerContent, JoinContent, TaskContent
from flcore.job.parsing import parse_contract
from flcore.server.events import Event
from flcore.server.federation import Federation
from flcore.server.open_attempt import OpenAttempt
from flcore.server.task_attempt import AttemptPolicy
from tests.flcore.identity.certificate_attempts import Attempt, Prepare
from tests.flcore.identity.federation_site import FederationSite

JOB = Job(
    parse_contract(
        {
            "name": "tokens",
            "clients": 9,
            "server": {"model": "code.py:model", "rounds": 9},
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
        },
        "the test's contract",
    ),
    Path(),
)
JOIN = JoinContent(contract=JOB.contract.to_json(), code_digest="", version="").to_bytes()
MODEL = Model.of({"w": np.ones(300, np.float32)})
ANSWER = AnswerContent(returns="weights", weight=1.0, spec_fingerprint=MODEL.spec.fingerprint).to_bytes()
KEY = bytes(range(32))

Connection = GrpcConnection | InProcessConnection


@dataclass
class Held:
    """A client that has joined, and its assignments in the order in which they came."""

    connection: Connection
    secret: str
    stream: Iterator[FromServer]

    def next_assignment(self) -> TaskAssignment:
        assignment = next(self.stream)
        assert isinstance(assignment, TaskAssignment)
        return assignment

    def call(self, method: str, assignment: TaskAssignment, token: bytes) -> object:
        """Make a call for an assignment, with a token."""
        number = assignment.assignment_id
        match method:
            case "Download":
                return list(self.connection.download(DownloadRequest(self.secret, number, 0, token)))
            case "Upload":
                request = UploadRequest(self.secret, number, ANSWER, MODEL.layout, token)
                return self.connection.upload(request, Outbox(MODEL))
            case _:
                return self.connection.report(Failure(self.secret, number, "no data", token))


class Assigning:
    """A federation whose attempts are opened by hand."""

    def __init__(self, observe: Callable[[Event], None], *, run_id: str = "run-1", key: bytes | None = KEY) -> None:
        self.federation = Federation(JOB, MODEL.spec, run_id=run_id, token_key=key, observe=observe)

    def join(self, name: str, connection: Connection) -> Held:
        stream = connection.session(Join(name, "1", JOIN))
        welcome = next(stream)
        assert isinstance(welcome, Welcome)
        return Held(connection, welcome.session_secret, stream)

    def open(self, names: list[str], round_number: int = 1, task: str = "train") -> OpenAttempt:
        content = TaskContent(task=task, round=round_number, rounds=9, seed=0, hyperparameters={})
        aggregator = Aggregator(MODEL.spec) if task == "train" else None
        return self.federation.open_attempt(
            dict.fromkeys(names, content), MODEL, AttemptPolicy(1000.0), aggregator=aggregator
        )


@dataclass
class Replays:
    """The assignment of a client in attempt 2 of round 2, and tokens that are not that assignment's."""

    held: Held
    assignment: TaskAssignment
    attempt: OpenAttempt
    tokens: dict[str, bytes]


TOKENS = [
    "of another run",
    "of another round",
    "of another task",
    "of another attempt",
    "of another client",
    "of a server with another key",
    "that is absent",
    "that is cut",
    "that is longer",
    "with a flipped bit",
]


def replays(connect: Callable[[Assigning, str], Connection], names: list[str], site: Assigning) -> Replays:
    """Open attempts at two clients, here and in other runs, and collect the tokens that they have got."""
    name, other = names
    held, others = site.join(name, connect(site, name)), site.join(other, connect(site, other))
    tokens: dict[str, bytes] = {}
    for key, round_number, task in (("round", 1, "train"), ("task", 2, "validate"), ("attempt", 2, "train")):
        site.open(names, round_number, task)
        tokens[f"of another {key}"] = held.next_assignment().token
    attempt = site.open(names, 2, "train")
    assignment = held.next_assignment()
    others_own = [others.next_assignment() for _ in range(4)][-1]
    assert others_own.assignment_id == assignment.assignment_id
    tokens["of another client"] = others_own.token
    tokens["that is absent"], tokens["that is cut"] = b"", assignment.token[:-1]
    tokens["that is longer"] = assignment.token + b"\x00"
    tokens["with a flipped bit"] = assignment.token[:-1] + bytes([assignment.token[-1] ^ 1])
    for key, made in (
        ("of another run", Assigning(lambda _: None, run_id="run-2")),
        ("of a server with another key", Assigning(lambda _: None, key=None)),
    ):
        for round_number, task in ((1, "train"), (2, "validate"), (2, "train")):
            made.open(names, round_number, task)
        same = made.open(names, 2, "train").assignments[name]
        assert (same.assignment_id, same.payload_id) == (assignment.assignment_id, assignment.payload_id)
        tokens[key] = same.token
    assert len(assignment.token) == 32
    assert len({assignment.token, *tokens.values()}) == 1 + len(TOKENS) and set(tokens) == set(TOKENS)
    return Replays(held, assignment, attempt, tokens)


def replayed(token: str, method: str) -> Prepare:
    """Call for an assignment with a token that is not its own."""

    def prepare(site: FederationSite) -> Attempt:
        found = site.replays
        if found is None:
            assigning = Assigning(site.service.observe)
            server = site.serve(assigning.federation)
            found = site.replays = replays(
                lambda _, name: site.connect(site.issue(name), server.address),
                [site.fresh_name(), site.fresh_name()],
                assigning,
            )
        return lambda: found.held.call(method, found.assignment, found.tokens[token])

    return prepare


def accepted(found: Replays) -> object:
    """Make each call with the assignment's own token. Returns the last one's receipt."""
    assert found.held.call("Download", found.assignment, found.assignment.token)
    receipt = found.held.call("Upload", found.assignment, found.assignment.token)
    assert receipt == Receipt(found.assignment.assignment_id)
    return receipt
