"""A client's own code: what it does wrong is told to its owner in full, and to others by its type and message."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flcore import Job, JobError, Site, Task, TaskFailed, Update
from flcore.client.executor import Executor, _to_float
from flcore.client.notices import MAX_TRACEBACK_CHARACTERS, NoticeLogger
from flcore.job.parsing import parse_contract

CONTRACT = {
    "name": "t",
    "clients": ["a"],
    "server": {"model": "t.py:init", "rounds": 1},
    "tasks": {"train": {"returns": "weights"}},
}
TASK = Task("train", 2, 3, 0, {}, Site("a", ("a",)))


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def run(tmp_path: Path, told: list[tuple[str, str]]) -> Callable[..., Update]:
    """Run the body of `train`."""

    def run(body: str, before: str = "") -> Update:
        code = f"import numpy as np, flcore\n{before}\ndef train(model, task):\n    {body}\n"
        (tmp_path / "t.py").write_text(code, encoding="utf-8")
        job = Job(parse_contract(CONTRACT | {"client": {"executor": "t.py"}}, "here"), tmp_path)
        return Executor(job, Site("a", ("a",)), lambda *notice: told.append(notice)).run({}, TASK)

    return run


def test_a_traceback_is_told_here_and_only_its_end_is_sent(run: Any, told: list[tuple[str, str]]) -> None:
    with pytest.raises(TaskFailed) as caught:
        run("return deep(model)", "def deep(model): return model['weigth']")
    assert str(caught.value) == "task 'train' raised KeyError: 'weigth'"
    [(_, text)] = told
    lines = text.splitlines()
    assert lines[0] == "a: round 2, task 'train' failed (most recent call last):"
    assert "t.py" in lines[1] and "line 4, in train" in lines[1], "it begins at the client's code"
    assert "line 2, in deep" in text and lines[-1] == "KeyError: 'weigth'"


def test_a_message_is_sent_on_one_line_and_cut(run: Any, told: list[tuple[str, str]]) -> None:
    with pytest.raises(TaskFailed) as caught:
        run(r"raise ValueError('one\ntwo\x1b[2J\u202e\ud800' + 'x' * 100_000)")
    sent = str(caught.value)
    assert r"ValueError: one\ntwo\x1b[2J\u202e\ud800xxx" in sent and len(sent) < 600
    assert len(told[0][1]) < 2 * MAX_TRACEBACK_CHARACTERS


def test_an_exception_without_a_message_to_show(run: Any, told: list[tuple[str, str]]) -> None:
    with pytest.raises(TaskFailed, match="raised Odd: its message cannot be shown"):
        run("raise Odd", "class Odd(Exception):\n    def __str__(self): raise KeyError")
    assert "t.py" in told[0][1]


def test_a_site_that_cannot_begin_is_told_where(tmp_path: Path, told: list[tuple[str, str]]) -> None:
    (tmp_path / "t.py").write_text("class Client:\n    def __init__(self, site): open('/nowhere/at/all')\n")
    job = Job(parse_contract(CONTRACT | {"client": {"executor": "t.py:Client"}}, "here"), tmp_path)
    with pytest.raises(JobError, match=r"client 'a': FileNotFoundError: .*/nowhere/at/all"):
        Executor(job, Site("a", ("a",)), lambda *notice: told.append(notice))
    assert "line 2, in __init__" in told[0][1]


class Scalar:
    """An array of a library, without dimensions."""

    shape = ()

    def item(self) -> float:
        return 0.25


@pytest.mark.parametrize(
    "value",
    [
        0.25,
        Fraction(1, 4),
        np.float32(0.25),
        np.array(0.25),
        np.array(0.25, ml_dtypes.bfloat16),
        ml_dtypes.bfloat16(0.25),
        Scalar(),
    ],
)
def test_a_metric_is_a_real_number(value: Any) -> None:
    assert _to_float(value) == 0.25 and type(_to_float(value)) is float


@pytest.mark.parametrize(
    ("metric", "wrong"),
    [
        ("{'m': np.nan}", "metric 'm' is left out of the answer: it is nan (float)"),
        ("{'m': np.float32('-inf')}", "it is -inf (float32), expected a finite number"),
        ("{'m': 10**400}", "it is inf (int)"),
        ("{'m': np.arange(3)}", "it is of type ndarray, expected a real number"),
        ("{'m': [1234.5]}", "it is of type list"),
        ("{'m': '1234.5'}", "it is of type str"),
        ("{'m': 1j}", "it is of type complex"),
        ("{'m': None}", "it is of type NoneType"),
        (r"{'m\n': None}", r"metric 'm\n' is left out"),
        ("{3: 1.0}", "its name is a int, expected a str of 1 to 128 characters"),
        ("{'': 1.0}", "expected a str of 1 to 128 characters"),
        ("{'m' * 129: 1.0}", "expected a str of 1 to 128 characters"),
    ],
)
def test_an_odd_metric_costs_the_metric(run: Any, told: list[tuple[str, str]], metric: str, wrong: str) -> None:
    update = run(f"return flcore.Update({{'w': np.ones(1)}}, weight=1, metrics={metric} | {{'sound': 1}})")
    assert update.metrics == {"sound": 1.0} and list(update.arrays) == ["w"]
    [(_, text)] = told
    assert text.startswith("a: round 2, task 'train': metric ") and wrong in text
    assert "1234.5" not in text and "\n" not in text


def test_a_weight_that_is_an_array_is_not_shown(run: Any) -> None:
    with pytest.raises(TaskFailed, match="the weight is a number, not a value of type ndarray"):
        run("return flcore.Update({}, weight=np.full(3, 1234.5))")


def test_a_notice_is_logged_once_for_each_kind(caplog: pytest.LogCaptureFixture) -> None:
    notices = NoticeLogger()
    for kind, text in (("one", "first"), ("one", "again"), ("two", "other")):
        notices(kind, text)
    assert [record.getMessage() for record in caplog.records] == ["first", "other"]
