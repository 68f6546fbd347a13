"""The workflow's calls of the controller, in order: recorded, and after a restart answered from the record.

A workflow is code, and its variables are not stored. It runs again from its start, and its calls get the results that
they had, until it comes to the call during which the server died. That one goes on, and those after it are new. This is
right as long as the workflow makes the same calls again; a call that differs is refused.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flcore.errors import QuorumError, WorkflowDiverged
from flcore.server.history import RoundRecord
from flcore.server.run_state import RecordedAnswer, RecordedCall, RecordedReceipt, RunState, to_json
from flcore.text import printable

MAX_SHOWN = 300

FAILED = "failed"
"""The key of a result that stands for a `QuorumError`: its summary."""


class Call:
    """One call, new or from the record.

    Attributes:
        number: Its number in the run, from 1.
        round: The round in which it is made; 0 before the first one.
        result: The result of the record; None if the call is new or was under way.
        record: The JSON of the round's record at the end of the call; None if the call is new or its round is over.
    """

    def __init__(self, state: RunState | None, made: RecordedCall, *, records_answers: bool) -> None:
        self._state, self._made, self._records_answers = state, made, records_answers
        self.number, self.round, self.result, self.record = made.number, made.round, made.result, made.record
        self.failure: QuorumError | None = None

    def raise_recorded(self) -> None:
        """Raise the error that the call has on record, if it has one."""
        if self.result is not None and FAILED in self.result:
            raise QuorumError(self.result[FAILED], reasons=self.result["reasons"])

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note a `QuorumError` of the block.

        It is recorded only when the workflow has survived it. If it ends the run, the run goes on with the same call.
        """
        try:
            yield
        except QuorumError as error:
            self.failure = error
            raise

    def end(self, result: Mapping[str, Any], record: RoundRecord) -> None:
        """Record the result, JSON values by name, and the round's record."""
        made = self._made
        if self._state is not None:
            ended = RecordedCall(made.number, made.round, made.kind, made.arguments, dict(result), record.to_json())
            self._state.end_call(ended)

    def fail(self) -> None:
        """Record the error that the workflow has caught, if there was one."""
        if self.failure is not None and self._state is not None:
            made, result = self._made, {FAILED: self.failure.summary, "reasons": self.failure.reasons}
            self._state.end_call(RecordedCall(made.number, made.round, made.kind, made.arguments, result))
        self.failure = None

    def answers(self) -> list[RecordedAnswer]:
        """Return the recorded answers, in the order of their commits."""
        return [] if self._state is None or not self._records_answers else self._state.answers(self.number)

    def add_answer(self, answer: RecordedAnswer, receipt: RecordedReceipt | None = None) -> None:
        """Record an answer and its receipt; on the disk when this returns."""
        if self._state is not None and self._records_answers:
            self._state.add_answer(self.number, answer, receipt)

    def remove_answer(self, client: str) -> None:
        """Record that a client's answer does not count any more."""
        if self._state is not None and self._records_answers:
            self._state.remove_answer(self.number, client)


class CallLog:
    """The calls of one run.

    Args:
        state: The run's record. Default: None, nothing is recorded.
        records_answers: Whether answers are recorded (`durability = "disk"`). Default: True.

    Attributes:
        publications: The calls of `publish` that were on record at the start, in order.
        last_connected: The clients that were connected when a sample was drawn last.
        is_continued: Whether the run had begun before: the record has calls or answers.
        has_new: Whether the workflow has made a call that is not in the record.
        past_rounds: The number of the last round that is over; 0 if none is.
        last_past_call: The number of the last call before the end of that round; 0 if there is none.
        released: The numbers of the recorded calls of `train` whose updates are not stored any more: a round that is
            over published a model after they were combined.
        skipped_trainings: The numbers of the calls of `train` that `skip_past_rounds` has left out, and whose updates
            are stored.

    Example:
        >>> log = CallLog()
        >>> log.begin(1, "sample", {"fraction": 1.0}).number
        1
    """

    def __init__(self, state: RunState | None = None, *, records_answers: bool = True) -> None:
        self._state, self.records_answers = state, records_answers
        self._number = 0
        self._last: Call | None = None
        recorded = [] if state is None else state.calls()
        self._recorded = deque(recorded)
        self.publications = [call for call in recorded if call.kind == "publish"]
        self.skipped_trainings: set[int] = set()
        samples = [call for call in recorded if call.kind == "sample" and FAILED not in call.result]
        self.last_connected: list[str] = samples[-1].result["connected"] if samples else []
        self._find_past()
        self.is_continued = state is not None and not state.is_empty()
        self.has_new = False

    def _find_past(self) -> None:
        self.past_rounds = 0 if self._state is None else self._state.last_round()
        self.last_past_call = 0 if self._state is None else self._state.last_call_of_rounds()
        self._last_of_round = {call.round: call.number for call in self.publications}
        past = [call for call in self.publications if call.number <= self.last_past_call]
        self.released = {number for call in past for number in call.result["released"]}

    def records(self) -> list[RoundRecord]:
        """Return the records of the rounds that are over."""
        return [] if self._state is None else self._state.rounds()

    def published_metrics(self) -> dict[int, Mapping[str, float]]:
        """Return the metrics of the last model that each round of the record published, by round."""
        return {call.round: call.arguments["metrics"] for call in self.publications}

    def is_replaced(self, publication: Call) -> bool:
        """Whether a recorded publication was replaced by a later one of its round."""
        return self._last_of_round[publication.round] != publication.number

    def begin(self, round_: int, kind: str, arguments: Any) -> Call:
        """Return the next call: from the record, or new.

        Args:
            round_: The round in which it is made.
            kind: The controller's method.
            arguments: What the result depends on, as a JSON value.

        Raises:
            WorkflowDiverged: The record has another call at this place.
        """
        self._record_failure()
        recorded = self._recorded.popleft() if self._recorded else None
        self._number = self._number + 1 if recorded is None else recorded.number
        made = RecordedCall(self._number, round_, kind, json.loads(to_json(arguments)))
        if recorded is not None:
            _require_same(recorded, made)
            made = recorded
        self.has_new = self.has_new or recorded is None
        self._last = Call(self._state, made, records_answers=self.records_answers)
        return self._last

    def forget_rest(self) -> None:
        """The last call gives another result than the one on record: what came after it is not on record any more."""
        self._recorded.clear()
        self.has_new = True
        if self._state is not None:
            self._state.forget_after(self._number)
            self.publications = [call for call in self.publications if call.number <= self._number]
            self._find_past()

    def skip_past_rounds(self) -> Mapping[str, bytes]:
        """Leave out the calls of rounds that are over. Returns the workflow's values at the end of the last of them."""
        if self._state is None:
            return {}
        last = self._state.last_call_of_rounds()
        while self._recorded and self._recorded[0].number <= last:
            call = self._recorded.popleft()
            if call.kind == "train" and call.number not in self.released:
                self.skipped_trainings.add(call.number)
        self._number = max(self._number, last)
        return self._state.workflow_values()

    def end_round(self, record: RoundRecord, values: Mapping[str, bytes], released: Iterable[int] = ()) -> None:
        """Record a round that is over, with the workflow's values. The answers to the `released` calls go."""
        self._record_failure()
        if self._state is not None:
            self._state.end_round(record, self._number, values, released)

    def _record_failure(self) -> None:
        """If the last call failed, the workflow has survived it: the failure is a part of the record."""
        if self._last is not None:
            self._last.fail()


def _require_same(recorded: RecordedCall, made: RecordedCall) -> None:
    """Raise `WorkflowDiverged` unless a call is the one that the record has."""
    for what, was, now in (
        ("round", recorded.round, made.round),
        ("call", recorded.kind, made.kind),
        ("arguments", recorded.arguments, made.arguments),
    ):
        if to_json(was) != to_json(now):
            raise WorkflowDiverged(
                f"the workflow's call {made.number} has another {what} than before the restart: expected "
                f"{_shown(was)}, got {_shown(now)}. A workflow that goes on after a restart makes the same calls "
                f"again; begin anew (--fresh), or see the documentation of `Controller.remaining_rounds`"
            )


def _shown(value: Any) -> str:
    return printable(json.dumps(value), MAX_SHOWN)
