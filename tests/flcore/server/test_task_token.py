"""Tokens of assignments: what they are bound to, and replays that a server refuses, over both transports."""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from flcore_transport import GrpcConnection, GrpcServer, InProcessConnection, InProcessServer, Refused

from flcore.server.events import AnswerRefused, Event
from flcore.server.task_token import TokenKey
from tests.flcore.identity.token_attempts import KEY, TOKENS, Assigning, Connection, Replays, accepted, replays

FIELDS: dict[str, Any] = {
    "round_number": 2,
    "task": "train",
    "assignment_id": 7,
    "client": "alice",
    "payload_id": "model-1",
}
OTHERS: dict[str, Any] = {
    "round_number": 3,
    "task": "validate",
    "assignment_id": 8,
    "client": "bob",
    "payload_id": "model-2",
}


def token(run_id: str = "run-1", key: bytes = KEY, **changes: Any) -> bytes:
    return TokenKey(key, run_id).token_of(**(FIELDS | changes))


def test_a_token_is_an_hmac_of_all_fields_with_their_lengths() -> None:
    fields = [b"flcore task assignment 1", b"run-1", b"2", b"train", b"7", b"alice", b"model-1"]
    message = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    assert token() == hmac.new(KEY, message, hashlib.sha256).digest()


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_changes_the_token(name: str) -> None:
    assert token(**{name: OTHERS[name]}) != token()


def test_run_and_key_change_the_token() -> None:
    assert len({token(), token("run-2"), token(""), token(key=bytes(32)), token(key=KEY + b"\x01")}) == 5


def test_a_field_cannot_take_bytes_of_the_next_one() -> None:
    assert token(task="train", client="7alice") != token(task="train7", client="alice")
    assert token(round_number=1, task="1train") != token(round_number=11, task="train")
    assert token("run-12") != token("run-1", round_number=22)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes, not 31"):
        TokenKey(bytes(31), "run-1")


@pytest.fixture(scope="module", params=["grpc", "in-process"])
def found(request: pytest.FixtureRequest) -> "Iterator[tuple[Replays, list[Event]]]":
    events: list[Event] = []
    assigning, opened = Assigning(events.append), list[Connection]()
    server: GrpcServer | InProcessServer = (
        GrpcServer(assigning.federation) if request.param == "grpc" else InProcessServer(assigning.federation)
    )

    def connect(_: Assigning, __: str) -> Connection:
        opened.append(
            InProcessConnection(server) if isinstance(server, InProcessServer) else GrpcConnection(server.address)
        )
        return opened[-1]

    yield replays(connect, ["alice", "bob"], assigning), events
    for connection in opened:
        connection.close()
    server.close("the test is over")


@pytest.mark.parametrize("method", ["Download", "Upload", "Report"])
@pytest.mark.parametrize("name", TOKENS)
def test_a_replayed_call_is_refused_and_changes_nothing(
    found: tuple[Replays, list[Event]], name: str, method: str
) -> None:
    replayed, events = found
    del events[:]
    with pytest.raises(Refused, match="expected the token of assignment 4, got that of another") as caught:
        replayed.held.call(method, replayed.assignment, replayed.tokens[name])
    assert caught.value.kind == "wrong-token"
    (refused,) = (event for event in events if isinstance(event, AnswerRefused))
    assert (refused.client, refused.round, refused.task, refused.kind) == ("alice", 2, "train", "wrong-token")
    attempt = replayed.attempt.attempt
    assert not attempt.failed and not attempt.answers and not attempt.bytes_received


def test_the_assignments_own_token_is_accepted_and_then_its_answer_counts_once(
    found: tuple[Replays, list[Event]],
) -> None:
    replayed, _ = found
    receipt = accepted(replayed)
    assert replayed.held.call("Upload", replayed.assignment, replayed.assignment.token) == receipt
    assert list(replayed.attempt.attempt.answers) == ["alice"]
    with pytest.raises(Refused, match="expected the token"):
        replayed.held.call("Upload", replayed.assignment, replayed.tokens["of another attempt"])


def test_an_earlier_assignments_own_token_is_refused_with_its_attempt(stage_tokens: Replays) -> None:
    with pytest.raises(Refused, match="was not asked") as caught:
        stage_tokens.held.call("Upload", stage_tokens.assignment, stage_tokens.assignment.token)
    assert caught.value.kind == "untimely"


@pytest.fixture
def stage_tokens() -> Iterator[Replays]:
    """An assignment of an earlier server of the same run, and a session of a later one that has no such attempt yet."""
    earlier, later = Assigning(lambda _: None), Assigning(lambda _: None)
    assignment = earlier.open(["alice"]).assignments["alice"]
    server = InProcessServer(later.federation)
    held = later.join("alice", InProcessConnection(server))
    yield Replays(held, assignment, earlier.open(["alice"]), {})
    held.connection.close()
    server.close("the test is over")
