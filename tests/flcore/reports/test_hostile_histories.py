"""Histories that were altered, or that a workflow has filled with odd numbers: drawn, or refused in one line."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.flcore.command import said
from tests.flcore.reports.written_runs import HOSTILE, history_lines, write_hospital

Record = dict[str, Any]
PART: Record = {"weight": 1.0, "metrics": {"loss": 1.0}, "bytes": 1, "seconds": 1.0}
COMMANDS = [
    ("show",),
    ("show", "--json"),
    ("status",),
    ("status", "--json"),
    ("report",),
    ("compare",),
    ("compare", "--json"),
    ("compare", "--out", "c.html"),
    *([("plot", "--out", "p.svg")] if find_spec("matplotlib") else []),
]


def all_with(**fields: Any) -> Callable[[int, Record], Record]:
    return lambda _, record: {**record, **fields}


def metrics(*values: float) -> Callable[[int, Record], Record]:
    """Give the rounds these values, as averages and of the clients."""
    return lambda index, record: {
        **record,
        "train": {"loss": values[index]},
        "validate": {"accuracy": -values[index]},
        "updates": {
            name: {**PART, "metrics": {"loss": (-1) ** n * values[index]}} for n, name in enumerate("abcdefghi")
        },
    }


SHOWN = {
    "not a number": metrics(math.nan, math.nan, math.nan),
    "infinite": metrics(math.inf, 1.0, -math.inf),
    "the largest": metrics(1.7e308, -1.7e308, 1.7e308),
    "the smallest": metrics(5e-324, 0.0, 5e-324),
    "many phases": all_with(seconds={"round": 1.0, **{f"phase-{number}": 0.1 for number in range(2_000)}}),
    "largest bytes": all_with(bytes_sent=2**63 - 1, bytes_received=2**63 - 1),
    "hostile names": all_with(
        sampled=[HOSTILE, "", "a" * 100_000],
        updates={HOSTILE: PART, "": PART, "a" * 100_000: PART},
        failed={HOSTILE: {HOSTILE: HOSTILE * 100, "": ""}},
        train={HOSTILE: 1.0, "": 2.0, "x" * 100_000: 3.0, "_nolegend_": 1.0},
        odd_metrics={HOSTILE: {HOSTILE: HOSTILE}},
        skipped=HOSTILE,
        seconds={HOSTILE: 1.0, "round": 2.0},
    ),
}
REFUSED = {
    "seconds that are no number": (all_with(seconds={"round": math.nan}), "seconds.round: expected a number from 0 to"),
    "seconds below zero": (all_with(seconds={"train": -1.0}), "seconds.train: expected a number from 0 to 1e+15"),
    "too many seconds": (all_with(updates={"a": {**PART, "seconds": 1e308}}), "seconds: expected a number from 0 to"),
    "a weight that is no number": (all_with(updates={"a": {**PART, "weight": math.nan}}), "weight: expected a number"),
    "an infinite capped weight": (all_with(capped_weights={"a": math.inf}), "capped_weights.a: expected a number"),
    "bytes below zero": (all_with(bytes_sent=-1), "bytes_sent: expected int from 0 to 2^63, got -1"),
    "too many bytes": (all_with(bytes_sent=2**63), "bytes_sent: expected int from 0 to 2^63"),
    "round 0": (all_with(round=0), "round: expected a number from 1 on, got 0"),
    "a checkpoint elsewhere": (all_with(checkpoint="../model"), "expected the name of a file as the checkpoint"),
    "a long checkpoint": (all_with(checkpoint="n" * 5_000), "expected the name of a file as the checkpoint"),
}


@pytest.fixture
def altered(tmp_path: Path) -> Callable[[Callable[[int, Record], Record]], Path]:
    """Write a run whose records are altered, beside another one."""

    def write(alter: Callable[[int, Record], Record]) -> Path:
        write_hospital(tmp_path / "other")
        run = write_hospital(tmp_path / "run")
        records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        lines = [json.dumps(alter(index, record)) + "\n" for index, record in enumerate(records)]
        (run / "history.jsonl").write_text("".join(lines))
        return tmp_path

    return write


Write = Callable[[Callable[[int, Record], Record]], Path]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of matplotlib, about characters that its font lacks
@pytest.mark.parametrize("name", SHOWN)
def test_odd_numbers_and_names_are_shown(name: str, altered: Write) -> None:
    directory = altered(SHOWN[name])
    for command, *options in COMMANDS:
        others = ["other"] if command == "compare" else []
        printed = said(command, "run", *others, *options, cwd=directory)
        assert all(char.isprintable() or char == "\n" for char in printed), command
        if "--json" in options:
            json.loads(printed, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_values_are_refused_with_their_place(name: str, altered: Write) -> None:
    alter, expected = REFUSED[name]
    directory = altered(alter)
    for command, *options in COMMANDS:
        others = ["other"] if command == "compare" else []
        line = said(command, "run", *others, *options, cwd=directory, code=1)
        assert expected in line and line.count("\n") == 1 and len(line) < 600
        assert "run/history.jsonl" in line and line.endswith("put back the one that the server wrote\n")


def test_the_written_history_is_read(tmp_path: Path) -> None:
    assert [record.round for record in history_lines(write_hospital(tmp_path / "run"))] == [1, 2, 3]
