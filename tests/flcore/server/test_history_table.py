"""A run's history as an Arrow table: its schema, runs that go on, and what is no history."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from flcore import HistoryError, Participation, RoundRecord, open_history
from flcore.rules.effect import RuleEffect
from tests.flcore.conftest import Stage, adding

METRICS = pa.map_(pa.string(), pa.field("value", pa.float64(), nullable=False))
REASONS = pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False))
UPDATE = pa.struct(
    [
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("metrics", METRICS, nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
EFFECT = pa.struct(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("factor", pa.float64(), nullable=False),
        pa.field("figure", pa.float64(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
    ]
)
COLUMNS = {
    "round": pa.int64(),
    "sampled": pa.list_(pa.field("item", pa.string(), nullable=False)),
    "updates": pa.map_(pa.string(), pa.field("value", UPDATE, nullable=False)),
    "failed": pa.map_(pa.string(), pa.field("value", REASONS, nullable=False)),
    "train": METRICS,
    "validate": METRICS,
    "bytes_sent": pa.int64(),
    "bytes_received": pa.int64(),
    "seconds": METRICS,
    "odd_metrics": pa.map_(pa.string(), pa.field("value", REASONS, nullable=False)),
    "asked_again": pa.int64(),
    "skipped": pa.string(),
    "is_best": pa.bool_(),
    "capped_weights": METRICS,
    "rule_effects": pa.map_(pa.string(), pa.field("value", EFFECT, nullable=False)),
    "checkpoint": pa.string(),
    "stopped": pa.string(),
}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()])
FULL = RoundRecord(
    1,
    ("a", "b"),
    {"a": Participation(2.0, {"loss": 0.5}, 2**40, 0.25)},
    {"train": {"b": "it raised"}},
    {"loss": 0.5},
    {"accuracy": 0.75},
    5,
    6,
    {"round": 1.5},
    {"a": {"odd": "it is a str"}},
    1,
    "1 of 2 updates",
    True,
    rule_effects={"a": RuleEffect("clipped", 0.5, 2.0, "norm")},
)


def write(run: Path, *records: RoundRecord, more: str = "") -> None:
    (run / "history.jsonl").write_text("".join(record.to_json() + "\n" for record in records) + more)


def plain(value: object) -> object:
    """Arrow's maps, which are lists of pairs, as dictionaries."""
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {key: plain(each) for key, each in value}
    if isinstance(value, dict):
        return {key: plain(each) or ({} if each == [] else each) for key, each in value.items()}
    return value


def test_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    table = open_history(tmp_path)
    table.validate(full=True)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert open_history.__doc__ is not None
    for name in COLUMNS:
        assert f"`{name}`" in open_history.__doc__


def test_a_round_comes_back_with_all_that_was_recorded(tmp_path: Path) -> None:
    write(tmp_path, FULL, RoundRecord(2))
    first, second = open_history(str(tmp_path)).to_pylist()
    assert plain(first) == json.loads(FULL.to_json())
    assert second["round"] == 2
    assert second["sampled"] == second["updates"] == second["odd_metrics"] == []


@pytest.mark.parametrize("torn", ["{", FULL.to_json()[:-1], FULL.to_json(), "\xff"])
def test_a_last_line_that_is_half_written_is_left_out(tmp_path: Path, torn: str) -> None:
    write(tmp_path, FULL, RoundRecord(2), more=torn)
    assert open_history(tmp_path)["round"].to_pylist() == [1, 2]


@pytest.mark.parametrize("content", ["", "{"])
def test_a_run_without_rounds_has_a_table_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.jsonl").write_text(content)
    table = open_history(tmp_path)
    assert table.num_rows == 0
    assert table.schema.equals(SCHEMA)


def test_metrics_that_are_whole_or_no_numbers_are_floats(tmp_path: Path) -> None:
    write(tmp_path, RoundRecord(1, train={"whole": 3, "none": math.nan}))
    ((_, whole), (_, none)) = open_history(tmp_path)["train"][0].as_py()
    assert type(whole) is float
    assert whole == 3.0
    assert math.isnan(none)


def test_a_record_of_an_earlier_version_has_defaults(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"round": 7}\n')
    (row,) = open_history(tmp_path).to_pylist()
    assert (row["round"], row["skipped"], row["asked_again"]) == (7, "", 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "Expecting value"),
        ("[1]", "got a list"),
        ("{}", "expected the key 'round', got none"),
        ('{"round": 2, "later": 1}', r"unknown keys \['later'\]"),
        ('{"round": "2"}', r"round: expected int from 0 to 2\^63, got '2'"),
        ('{"round": true}', r"round: expected int from 0 to 2\^63, got True"),
        ('{"round": 9223372036854775808}', "round: expected int"),
        ('{"round": 2, "train": {"loss": "low"}}', "train.loss: expected float, got 'low'"),
        ('{"round": 2, "sampled": "a"}', "sampled: expected tuple"),
        ('{"round": 2, "updates": {"a": {"weight": 1.0}}}', r"missing keys \['bytes', 'metrics', 'seconds'\]"),
        ("[" * 100_000, "recursion"),
        ('{"round": 2, "round": 3}', "'round' appears twice"),
    ],
)
def test_a_line_that_is_no_round_is_an_error_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, FULL, more=line + "\n")
    with pytest.raises(HistoryError, match=rf"line 2 of .*history.jsonl; .*{message}"):
        open_history(tmp_path)


def test_text_that_is_no_unicode_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, RoundRecord(1, skipped="\ud800"))
    with pytest.raises(HistoryError, match=r"line 1 of .*; skipped: expected text, got a lone surrogate"):
        open_history(tmp_path)


def test_a_directory_that_is_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"which holds history.jsonl, got .*--out"):
        open_history(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_history(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match="which holds history"):
        open_history(tmp_path / "file")


@pytest.mark.parametrize("stage", ["in-process"], indirect=True)
def test_the_history_of_a_run_is_the_outcomes(stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stage.open(wait_for=3, quorum=3, rounds=2, out=out)
    for number in range(1, 4):
        stage.client(f"client-{number}", adding(float(number)))
    history, _ = stage.result()
    rows = open_history(out).to_pylist()
    assert [plain(row) for row in rows] == [json.loads(record.to_json()) for record in history]
    assert len(rows) == 2
