"""Bad input costs its sender its place in the round, and nobody else anything: over real gRPC and in-process.

In each test "bad" misbehaves and two others do not; the round counts with the two.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flcore_layout import Layout, PayloadPart, Segment
from flcore_transport import Outbox, Refused, TaskAssignment, TransportError, UploadRequest
from flcore_transport.control import MAX_MESSAGE_BYTES

from flcore import Arrays, Model, Outcome, QuorumError, Task, Update
from flcore.client.cached_answer import MAX_CONTENT_BYTES
from flcore.job.messages import AnswerContent, TaskContent, parse_content
from flcore.model.model import NamedArrays
from flcore.server.events import InvalidMetrics
from tests.flcore.conftest import Function, Stage, adding, mean_of, read_ahead

Change = Callable[[dict[str, Any]], dict[str, Any]]


def returning(change: Change, **fields: Any) -> Function:
    """A client that trains as the others do, and then changes its arrays."""

    def train(model: Arrays, task: Task) -> Update:
        honest = adding(9.0)(model, task)
        return replace(honest, arrays=change(dict(honest.arrays)), **fields)

    return train


def setting(name: str, index: int, value: float) -> Change:
    def change(arrays: dict[str, Any]) -> dict[str, Any]:
        arrays[name].reshape(-1)[index] = value
        return arrays

    return change


def run_with(stage: Stage, bad: Function) -> Outcome:
    stage.open(wait_for=3, quorum=2, clients=["bad", "good-1", "good-2"])
    stage.client("bad", bad)
    stage.client("good-1", adding(1.0))
    stage.client("good-2", adding(3.0))
    return stage.result()


def reason(outcome: Outcome) -> str:
    """Why "bad" has failed; the others' mean must be untouched."""
    assert mean_of(outcome) == {2.0}
    assert sorted(outcome.history[0].updates) == ["good-1", "good-2"]
    return outcome.history[0].failed["train"]["bad"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (setting("b", 299, np.nan), "client 'bad', tensor 'b': element 299 is nan"),
        (setting("w", 4, np.inf), "client 'bad', tensor 'w': element 4 is inf"),
        (setting("w", 0, -np.inf), "client 'bad', tensor 'w': element 0 is -inf"),
        (setting("b", 7, -101.0), "tensor 'b': element 7 has magnitude 101, more than the 100 allowed"),
        (lambda arrays: {"w": arrays["w"]}, "client 'bad', tensor 'b': it is missing"),
        (lambda arrays: arrays | {"odd": arrays["b"]}, "client 'bad', tensor 'odd': the model has no tensor"),
        (lambda arrays: arrays | {"w": arrays["w"].T}, r"tensor 'w': expected float32 of shape (2, 3), got float32"),
        (lambda arrays: arrays | {"b": arrays["b"][:1]}, "tensor 'b': expected float32 of shape (300,)"),
        (lambda arrays: arrays | {"b": arrays["b"].astype("f8")}, "tensor 'b': expected float32"),
        (lambda arrays: arrays | {"b": arrays["b"].astype("c8")}, "dtype complex64 is not supported"),
        (lambda arrays: arrays | {"b": [1.0] * 300}, "tensor 'b': expected an array of NumPy, PyTorch"),
        (lambda _: {}, "a model has at least one tensor"),
    ],
)
def test_bad_tensors(stage: Stage, change: Change, expected: str) -> None:
    assert expected in reason(run_with(stage, returning(change)))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (-1.0, "client 'bad': a weight is a finite number > 0, not -1.0"),
        (0.0, "finite number > 0, not 0.0"),
        (np.nan, "finite number > 0, not nan"),
        (np.inf, "finite number > 0, not inf"),
        (1001.0, "client 'bad': its weight 1001 is more than max_weight = 1000"),
        (None, "the weight is a number, not None"),
        (True, "the weight is a number, not True"),
        ("3", "the weight is a number, not '3'"),
    ],
)
def test_bad_weights(stage: Stage, weight: Any, expected: str) -> None:
    assert expected in reason(run_with(stage, returning(lambda arrays: arrays, weight=weight)))


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({f"m{i}": 1.0 for i in range(4)}, "4 metrics are more than max_metrics = 3"),
        ([("loss", 1.0)], "arrays and metrics are mappings from names"),
    ],
)
def test_bad_metrics(stage: Stage, metrics: Any, expected: str) -> None:
    assert expected in reason(run_with(stage, returning(lambda arrays: arrays, metrics=metrics)))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("loss", "NaN", "it is nan"),
        ("loss", "-Infinity", "it is -inf"),
        ("loss", "1e31", "expected a number of at most 1e\\+30"),
        ("loss", "9" * 400, "it is 9{37}\\.\\.\\., expected"),
        ("loss", '"low"', "it is a str, expected a number"),
        ("loss", "[1, 2]", "it is a list, expected a number"),
        ("loss", "true", "it is a bool, expected a number"),
        ("", "1", "1 to 128 characters"),
        ("m" * 129, "1", "1 to 128 characters"),
        ("bad\\nround 9/9", "1", "that can be printed"),
    ],
)
def test_an_invalid_metric_on_the_wire_is_dropped_and_the_update_counts(
    by_hand: "ByHand", name: str, value: str, why: str
) -> None:
    content = by_hand.content.to_bytes().replace(b'"metrics":{}', f'"metrics":{{"{name}":{value},"sound":2}}'.encode())
    assignment = by_hand.next_assignment()
    request = UploadRequest(by_hand.secret, assignment.assignment_id, content, by_hand.source.layout, assignment.token)
    by_hand.stage.connect().upload(request, Outbox(by_hand.source))
    record = by_hand.stage.result().history[0]
    assert sorted(record.updates) == ["bad", "good-1", "good-2"] and record.updates["bad"].metrics == {"sound": 2}
    assert record.train == {"added": 2.0, "sound": 2.0}
    (said,) = record.odd_metrics["bad"].values()
    assert re.search(why, said)
    assert [event.client for event in by_hand.stage.events if isinstance(event, InvalidMetrics)] == ["bad"]


@pytest.mark.parametrize("metrics", [{"loss": np.nan}, {"loss": "low"}, {1: 2.0}, {"m" * 200: 1.0}, {"m": [1.0]}])
def test_an_invalid_metric_of_a_clients_code_is_dropped_and_the_update_counts(stage: Stage, metrics: Any) -> None:
    outcome = run_with(stage, lambda model, task: replace(adding(5.0)(model, task), metrics=metrics | {"sound": 5.0}))
    assert mean_of(outcome) == {3.0}
    assert outcome.history[0].updates["bad"].metrics == {"sound": 5.0}


@pytest.mark.parametrize("answer", [None, {"w": 1}, 3])
def test_no_update_at_all(stage: Stage, answer: Any) -> None:
    assert "expected flcore.Update" in reason(run_with(stage, lambda _model, _task: answer))


def test_a_round_that_loses_its_quorum_to_bad_input_fails_with_the_reason(stage: Stage) -> None:
    stage.open(wait_for=2, quorum=2, clients=["bad", "good-1"])
    stage.client("bad", returning(setting("w", 0, np.nan)))
    stage.client("good-1", adding(1.0))
    with pytest.raises(QuorumError, match="bad: refused: client 'bad', tensor 'w': element 0 is nan"):
        stage.result()


class ByHand:
    """A client that does not use flcore's own: what it sends is made by hand."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.secret, stream = stage.join(name)
        self._stream = read_ahead(stream)
        self.tokens: dict[int, bytes] = {}
        arrays = {"w": np.full((2, 3), 9, np.float32), "b": np.full(300, 9, np.float32)}
        self.model = Model.of(arrays)
        self.source = NamedArrays(self.model.spec, arrays)
        self.content = AnswerContent(returns="weights", weight=1.0, spec_fingerprint=self.model.spec.fingerprint)

    def next_assignment(self) -> TaskAssignment:
        assignment = next(self._stream)
        assert isinstance(assignment, TaskAssignment)
        self.tokens[assignment.assignment_id] = assignment.token
        return assignment

    def send(
        self, assignment_id: int, outbox: Outbox | None = None, layout: Layout | None = None, **changes: Any
    ) -> None:
        changed = self.content.model_copy(update=changes).to_bytes()
        token = self.tokens.get(assignment_id, b"")
        request = UploadRequest(self.secret, assignment_id, changed, layout or self.source.layout, token)
        self.stage.connect().upload(request, outbox or Outbox(self.source))


@pytest.fixture
def by_hand(stage: Stage) -> ByHand:
    stage.open(wait_for=3, quorum=2, clients=["bad", "good-1", "good-2"])
    bad = ByHand(stage, "bad")
    stage.client("good-1", adding(1.0))
    stage.client("good-2", adding(3.0))
    return bad


class Spoiled(Outbox):
    """Sends a piece that something happened to."""

    def __init__(self, source: NamedArrays, spoil: Callable[[bytes], bytes]) -> None:
        super().__init__(source)
        self._spoil = spoil

    def piece(self, index: int) -> bytes:
        return self._spoil(super().piece(index))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda piece: piece[:-1] + b"\x01", "corrupt: its checksum does not match"),
        (lambda piece: piece[:-4], "truncated"),
        (lambda piece: piece[:10], "truncated"),
        (lambda piece: b"", "truncated"),
        (lambda piece: piece + b"\0" * 8, "padded"),
        (lambda piece: b"GARB" + piece[4:], "not a piece"),
        (lambda piece: piece[:4] + b"\x09" + piece[5:], "protocol version 9, expected 4"),
    ],
)
def test_a_corrupted_piece(by_hand: ByHand, spoil: Callable[[bytes], bytes], expected: str) -> None:
    with pytest.raises(Refused, match=expected) as caught:
        by_hand.send(by_hand.next_assignment().assignment_id, Spoiled(by_hand.source, spoil))
    assert caught.value.kind == "corrupt"
    said = reason(by_hand.stage.result())
    assert "client 'bad', tensor 'w': piece 0 of 1" in said and expected in said


def test_an_element_in_a_gap(by_hand: ByHand) -> None:
    by_hand.model.segments[0][6] = 1.0
    with pytest.raises(Refused, match="the gap behind it is not zero"):
        by_hand.send(by_hand.next_assignment().assignment_id, Outbox(by_hand.model))
    assert "client 'bad', tensor 'w'" in reason(by_hand.stage.result())


def test_a_wrong_fingerprint(by_hand: ByHand) -> None:
    with pytest.raises(Refused, match="fingerprint 0123, expected"):
        by_hand.send(by_hand.next_assignment().assignment_id, spec_fingerprint="0123")
    assert "client 'bad': its model has fingerprint 0123" in reason(by_hand.stage.result())


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout((PayloadPart("model", (Segment("float32", 2**45),)),)),
        Layout((PayloadPart("model", (Segment("float16", 768),)),)),
        Layout((PayloadPart("model", (Segment("float32", 768),)), PayloadPart("more", ()))),
    ],
)
def test_pieces_announced_in_another_layout(by_hand: ByHand, layout: Layout) -> None:
    with pytest.raises(Refused, match="not laid out"):
        by_hand.send(by_hand.next_assignment().assignment_id, layout=layout)
    assert "not laid out" in reason(by_hand.stage.result())


def test_an_answer_of_another_kind(by_hand: ByHand) -> None:
    with pytest.raises(Refused, match="the task returns weights, it sent delta"):
        by_hand.send(by_hand.next_assignment().assignment_id, returns="delta")
    assert "it sent delta" in reason(by_hand.stage.result())


def test_a_malformed_message(by_hand: ByHand) -> None:
    assignment = by_hand.next_assignment()
    with pytest.raises(Refused) as caught:
        by_hand.stage.connect().upload(
            UploadRequest(by_hand.secret, assignment.assignment_id, b"{]", token=assignment.token),
            Outbox(by_hand.source),
        )
    assert caught.value.kind == "malformed"
    assert "AnswerContent" in reason(by_hand.stage.result())


def test_a_refused_client_cannot_try_again_in_the_same_round(by_hand: ByHand) -> None:
    assignment_id = by_hand.next_assignment().assignment_id
    with pytest.raises(Refused):
        by_hand.send(assignment_id, weight=-1.0)
    with pytest.raises(Refused, match=r"has failed in this attempt|closed without it"):
        by_hand.send(assignment_id)
    reason(by_hand.stage.result())


def test_unknown_assignments_are_refused_and_change_nothing(by_hand: ByHand) -> None:
    assignment_id = by_hand.next_assignment().assignment_id
    for other in (assignment_id + 1, 2**60):
        with pytest.raises(Refused, match="was not asked"):
            by_hand.send(other)
    by_hand.send(assignment_id)
    outcome = by_hand.stage.result()
    assert sorted(outcome.history[0].updates) == ["bad", "good-1", "good-2"]


def test_the_same_answer_twice_counts_once(stage: Stage) -> None:
    stage.open(wait_for=2, quorum=2, clients=["twice", "good"])
    twice = ByHand(stage, "twice")

    def good(model: Arrays, task: Task) -> Update:
        assignment_id = twice.next_assignment().assignment_id
        twice.send(assignment_id)
        twice.send(assignment_id)
        with pytest.raises(Refused, match="answer is in already"):
            twice.send(assignment_id, weight=2.0)
        return adding(1.0)(model, task)

    stage.client("good", good)
    assert mean_of(stage.result()) == {5.0}


def test_late_and_stale_answers_are_told_apart(stage: Stage) -> None:
    said: list[str] = []

    def good(model: Arrays, task: Task) -> Update:
        if task.round == 2:
            # The attempt of round 1 has closed without it, and that of round 2 is open.
            with pytest.raises(Refused) as caught:
                slow.send(first)
            said.append(str(caught.value))
        return adding(1.0)(model, task)

    stage.open(wait_for=2, quorum=1, clients=["slow", "good"], rounds=2, deadline_s=1.0)
    slow = ByHand(stage, "slow")
    stage.client("good", good)
    assignment = slow.next_assignment()
    first = assignment.assignment_id
    message = parse_content(TaskContent, assignment.content)
    assert (message.task, message.round) == ("train", 1)
    outcome = stage.result()
    assert said == ["client 'slow': not taken: it answers an earlier attempt"]
    assert "deadline of 1 s" in outcome.history[0].failed["train"]["slow"]
    assert mean_of(outcome) == {2.0}


def test_an_upload_is_resumed_by_the_answer_that_began_it_and_by_no_other(by_hand: ByHand) -> None:
    assignment_id = by_hand.next_assignment().assignment_id

    class Cut(Outbox):
        def piece(self, index: int) -> bytes:
            raise ConnectionError("the process died")

    with pytest.raises((TransportError, ConnectionError)):
        by_hand.send(assignment_id, Cut(by_hand.source), upload_id="first", weight=2.0)
    by_hand.send(assignment_id, upload_id="second")
    outcome = by_hand.stage.result()
    assert outcome.history[0].updates["bad"].weight == 1.0


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [([("w", "float32", [2**48] * 60)], "more than"), ([("w", "float32", [2] * 1000)], "AnswerContent: tensors")],
)
def test_shapes_that_would_take_for_ever(by_hand: ByHand, tensors: Any, expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        by_hand.send(by_hand.next_assignment().assignment_id, tensors=tensors)
    assert expected in reason(by_hand.stage.result())


@pytest.mark.parametrize("answer", ["exit", "weight"])
def test_answers_that_cannot_be_sent_cost_the_round_and_not_the_client(stage: Stage, answer: str) -> None:
    def odd(model: Arrays, _: Task) -> Update:
        if answer == "exit":
            raise SystemExit(3)
        return Update(model, weight=10**400)

    said = reason(run_with(stage, odd))
    assert "SystemExit" in said or "cannot be sent" in said


def test_metrics_that_no_message_holds_are_told_at_once(stage: Stage) -> None:
    """Without a word of the client, its attempt would last until the deadline."""
    assert MAX_CONTENT_BYTES < MAX_MESSAGE_BYTES

    def talkative(model: Arrays, _: Task) -> Update:
        return Update(model, weight=1.0, metrics={f"metric {number:0100}": 0.5 for number in range(10_000)})

    said = reason(run_with(stage, talkative))
    assert re.search(r"expected at most 1,040,384 bytes .*, got 1,\d\d\d,\d\d\d with 10,000 metrics", said)
