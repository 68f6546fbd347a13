"""Replaying the controller's calls."""

from pathlib import Path

import pytest

from flcore.errors import QuorumError, WorkflowDiverged
from flcore.server.call_log import CallLog
from flcore.server.history import Participation, RoundRecord
from flcore.server.run_state import RecordedAnswer, RunState


def answer(client: str) -> RecordedAnswer:
    return RecordedAnswer(client, Participation(1.0, {}, 0, 0.0), {"loss": "it is a str, expected a number"}, "2-x")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The record of a run that died in its second call."""
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        log.begin(1, "sample", {"fraction": None}).end({"clients": ["a"], "connected": ["a", "b"]}, RoundRecord(1))
        train = log.begin(1, "train", {"clients": ["a", "b"]})
        train.add_answer(answer("b"))
    return tmp_path / "state.sqlite"


def test_calls_have_the_results_that_they_had(recorded: Path) -> None:
    with RunState(recorded) as state:
        log = CallLog(state)
        assert log.is_continued
        assert log.last_connected == ["a", "b"]
        sample = log.begin(1, "sample", {"fraction": None})
        assert sample.result == {"clients": ["a"], "connected": ["a", "b"]}
        assert not log.has_new


def test_the_call_that_was_under_way_goes_on_with_its_answers(recorded: Path) -> None:
    with RunState(recorded) as state:
        log = CallLog(state)
        log.begin(1, "sample", {"fraction": None})
        train = log.begin(1, "train", {"clients": ("a", "b")})  # a tuple is a list in JSON
        assert (train.number, train.result, train.answers()) == (2, None, [answer("b")])
        assert log.has_new
        train.add_answer(answer("a"))
        train.end({"metrics": {}}, RoundRecord(1))
        log.begin(1, "publish", {}).end({"is_best": True, "released": [2]}, RoundRecord(1))
    with RunState(recorded) as state:
        assert [call.kind for call in state.calls()] == ["sample", "train", "publish"]
        assert [each.client for each in state.answers(2)] == ["b", "a"]
        log = CallLog(state)
        assert log.released == set(), "the round is not over"
        assert [call.number for call in log.publications] == [3]
        for kind, arguments in (("sample", {"fraction": None}), ("train", {"clients": ["a", "b"]}), ("publish", {})):
            log.begin(1, kind, arguments)
        log.end_round(RoundRecord(1), {}, released=[2])
    with RunState(recorded) as state:
        assert CallLog(state).released == {2}
        assert state.answers(2) == []


@pytest.mark.parametrize(
    ("round_", "kind", "arguments", "told"),
    [
        (2, "sample", {"fraction": None}, "another round than before the restart: expected 1, got 2"),
        (1, "train", {"fraction": None}, 'another call than before the restart: expected "sample", got "train"'),
        (1, "sample", {"fraction": 0.5}, 'expected {"fraction": null}, got {"fraction": 0.5}'),
    ],
)
def test_another_call_than_the_one_on_record_is_refused(
    recorded: Path, round_: int, kind: str, arguments: object, told: str
) -> None:
    with RunState(recorded) as state, pytest.raises(WorkflowDiverged) as diverged:
        CallLog(state).begin(round_, kind, arguments)
    assert told in str(diverged.value)


def fail(log: CallLog, tried: list[int]) -> None:
    """Make a call that fails, once."""
    call = log.begin(1, "train", {})
    call.raise_recorded()
    with call.noting_failure():
        tried.append(call.number)
        raise QuorumError("1 of 3 answers are in", reasons="b: out of memory")


def test_a_failure_that_the_workflow_survived_is_replayed_and_one_that_ended_it_is_tried_again(tmp_path: Path) -> None:
    tried: list[int] = []
    for is_caught in (False, True, False):
        with RunState(tmp_path / "state.sqlite") as state:
            log = CallLog(state)
            with pytest.raises(QuorumError) as failed:
                fail(log, tried)
            assert str(failed.value) == "1 of 3 answers are in: b: out of memory"
            if is_caught:
                log.begin(1, "train", {}).end({"metrics": {}}, RoundRecord(1))
    assert tried == [1, 1], "the failure of the first process ended it, and the second survived its own"


def test_rounds_that_are_over_can_be_left_out(tmp_path: Path) -> None:
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        for round_ in (0, 1, 2, 3):  # the third is under way, and 0 came before the first
            log.begin(round_, "sample", {}).end({"clients": [], "connected": []}, RoundRecord(round_))
            if round_ in (1, 2):
                log.end_round(RoundRecord(round_), {"best": bytes([round_])})
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        assert log.begin(0, "sample", {}).number == 1
        assert log.skip_past_rounds() == {"best": b"\2"}
        assert [record.round for record in log.records()] == [1, 2]
        assert log.past_rounds == 2
        assert log.begin(3, "sample", {}).result == {"clients": [], "connected": []}
        assert log.begin(3, "train", {}).number == 5


def test_without_a_record_calls_are_new() -> None:
    log = CallLog()
    call = log.begin(1, "sample", {})
    call.end({"clients": ["a"]}, RoundRecord(1))
    assert (call.result, call.answers(), log.begin(1, "train", {}).number) == (None, [], 2)
    assert not log.is_continued


def test_with_receipts_for_what_is_in_memory_no_answer_is_recorded(tmp_path: Path) -> None:
    with RunState(tmp_path / "state.sqlite") as state:
        call = CallLog(state, records_answers=False).begin(1, "train", {})
        call.add_answer(answer("a"))
        call.end({"metrics": {}}, RoundRecord(1))
        assert state.answers(1) == []
        assert len(state.calls()) == 1


def test_a_call_that_has_to_be_made_again_takes_what_came_after_it_off_the_record(tmp_path: Path) -> None:
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        for round_ in (1, 2):
            for kind in ("train", "validate"):
                log.begin(round_, kind, {}).end({"metrics": {}}, RoundRecord(round_))
            log.end_round(RoundRecord(round_), {})
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        log.begin(1, "train", {})
        log.forget_rest()
        assert (log.past_rounds, log.begin(1, "validate", {"other": 1}).result) == (0, None)
        assert [call.number for call in state.calls()] == [1]


def test_publications_that_are_forgotten_do_not_count(tmp_path: Path) -> None:
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        for released in ([], [7], [8]):
            log.begin(1, "publish", {}).end({"released": released}, RoundRecord(1))
        log.end_round(RoundRecord(1), {})
    with RunState(tmp_path / "state.sqlite") as state:
        log = CallLog(state)
        assert log.released == {7, 8}
        calls = [log.begin(1, "publish", {}) for _ in range(2)]
        assert [log.is_replaced(call) for call in calls] == [True, True]
        log.forget_rest()
        assert [call.number for call in log.publications] == [1, 2]
        assert log.released == set(), "the round is not over any more"
        assert [log.is_replaced(call) for call in calls] == [True, False]


def test_the_record_of_a_round_is_kept_with_its_calls_until_the_round_is_over(tmp_path: Path) -> None:
    with RunState(tmp_path / "state.sqlite") as state:
        log, record = CallLog(state), RoundRecord(1, sampled=("a",))
        log.begin(1, "train", {}).end({"metrics": {}}, record)
        assert [call.record for call in state.calls()] == [record.to_json()]
        log.end_round(record, {})
        assert [call.record for call in state.calls()] == [None], "it would grow with the rounds"
