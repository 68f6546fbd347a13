"""Who took part: the grid, shares, and the reasons of those left out."""

from pathlib import Path

import pytest

from flcore.reports.html_report import report_page
from flcore.reports.participation import LeftOut, Part, left_out, part_counts, participation, spans
from flcore.reports.reported_run import read_reported_run
from flcore.rules.effect import RuleEffect
from flcore.server.events import TaskAnswered
from flcore.server.history import Participation, RoundRecord
from tests.flcore.reports.written_runs import write_hospital, write_run


def test_each_client_has_a_part_in_each_round(tmp_path: Path) -> None:
    clients = participation(read_reported_run(write_hospital(tmp_path / "run")))
    assert {name: each.parts for name, each in clients.items()} == {
        "a": [Part.COUNTED, Part.UNVALIDATED, Part.UNUSED],
        "b": [Part.COUNTED, Part.FAILED, Part.FAILED],
        "c": [Part.COUNTED, Part.REFUSED, Part.ABSENT],
    }
    assert sum(part_counts(clients).values()) == 9
    assert [clients["a"].counted, clients["b"].counted, clients["c"].counted] == [2, 1, 1]
    assert clients["a"].shares == [0.1, 1.0] and clients["c"].shares == [0.6]
    assert clients["a"].bytes == 1_400 and clients["c"].median_seconds == 4.0


def test_an_answer_in_a_skipped_round_counts_for_nothing(tmp_path: Path) -> None:
    record = RoundRecord(1, ("a", "b"), {"a": Participation(5.0, {}, 700, 1.0)}, skipped="1 of 2 updates")
    client = participation(read_reported_run(write_run(tmp_path / "run", [record])))["a"]
    assert client.parts == [Part.SKIPPED] and client.counted == 0
    assert (client.weights, client.shares, client.seconds, client.bytes) == ([], [], [], 700)


def test_a_capped_weight_is_the_one_that_counts(tmp_path: Path) -> None:
    updates = {"a": Participation(100.0, {}, 1, 1.0), "b": Participation(10.0, {}, 1, 1.0)}
    record = RoundRecord(1, ("a", "b"), updates, capped_weights={"a": 10.0})
    clients = participation(read_reported_run(write_run(tmp_path / "run", [record])))
    assert clients["a"].weights == [10.0] and clients["a"].shares == [0.5]


def test_what_a_rule_excludes_has_no_share_and_what_it_scales_has_another_one(tmp_path: Path) -> None:
    updates = {name: Participation(10.0, {}, 1, 1.0) for name in "abcd"}
    effects = {
        "a": RuleEffect("excluded", 0.0, 9.0, "score"),
        "b": RuleEffect("scaled", 2.0, 1.0, "distance"),
        "c": RuleEffect("clipped", 0.1, 5.0, "norm"),
    }
    run = read_reported_run(write_run(tmp_path / "run", [RoundRecord(1, tuple("abcd"), updates, rule_effects=effects)]))
    assert {name: each.shares for name, each in participation(run).items()} == {
        "a": [0.0],
        "b": [0.5],
        "c": [0.25],
        "d": [0.25],
    }
    page = report_page(run)
    assert "1 update clipped by the rule, 1 update excluded by the rule, 1 update scaled by the rule" in page


def test_without_training_an_answer_to_another_task_counts(tmp_path: Path) -> None:
    events = [TaskAnswered("validate", "a", 1, 1, 2.0, 0, "d" * 64)]
    record = RoundRecord(1, ("a", "b"), failed={"validate": {"b": "it raised"}})
    clients = participation(read_reported_run(write_run(tmp_path / "run", [record], events=events)))
    assert {name: each.parts for name, each in clients.items()} == {"a": [Part.COUNTED], "b": [Part.FAILED]}


def test_reasons_are_those_of_the_history_with_the_kind_of_the_audit_log(tmp_path: Path) -> None:
    run = read_reported_run(write_hospital(tmp_path / "run"))
    assert left_out(run) == [
        LeftOut("b", "train", "", "no answer within 60 s", [2, 3]),
        LeftOut("a", "validate", "", "it raised", [2]),
        LeftOut("c", "train", "out-of-bounds", "expected at most 1000, got 1e9", [2]),
    ]
    assert [each.how for each in left_out(run)] == ["failed", "failed", "refused: out-of-bounds"]


def test_reasons_that_differ_in_numbers_are_one(tmp_path: Path) -> None:
    records = [
        RoundRecord(number, ("a",), failed={"train": {"a": f"element {number} is {number}.5e{number}"}})
        for number in (1, 2, 3)
    ]
    run = read_reported_run(write_run(tmp_path / "run", records))
    assert left_out(run) == [LeftOut("a", "train", "", "element 3 is 3.5e3", [1, 2, 3])]


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([], ""),
        ([5], "5"),
        ([1, 2, 3], "1\u20133"),
        ([1, 3, 4, 9], "1, 3\u20134, 9"),
        ([1, 3, 5, 6, 7], "1, 3 and 3 more"),
    ],
)
def test_rounds_as_spans(numbers: list[int], shown: str) -> None:
    assert spans(numbers, 2 if "more" in shown else 8) == shown
