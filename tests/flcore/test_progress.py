"""`flcore.progress`: what it accepts, when it reports, and what a call costs."""

import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore.progress import TaskProgress, report_progress


@pytest.mark.parametrize(
    ("done", "total"),
    [(-1, 10), (11, 10), (0, 0), (1, -1), (0, math.inf), (math.nan, 1), (0, math.nan), (math.inf, math.inf),
     ("1", 2), (1, "2"), (None, 1), (1, None), (True, 2), (1, True), (1j, 2), ([1], 2)],
)  # fmt: skip
def test_wrong_arguments_raise_inside_and_outside_a_task(done: Any, total: Any) -> None:
    with pytest.raises(ValueError, match="expected numbers 0 <= done <= total"):
        flcore.progress(done, total)
    reports: list[TaskProgress] = []
    with report_progress(reports.append, "a", "train", 1, 2), pytest.raises(ValueError):
        flcore.progress(done, total)
    assert not reports


@pytest.mark.parametrize(
    ("done", "total"), [(0, 1), (1, 1), (0.5, 1), (np.int64(3), np.float32(4)), (np.float64(0), 10**30)]
)
def test_numbers_of_all_kinds_are_reported_as_floats(done: Any, total: Any) -> None:
    reports: list[TaskProgress] = []
    with report_progress(reports.append, "a", "train", 1, 2):
        flcore.progress(done, total)
    assert reports == [TaskProgress("a", "train", 1, 2, float(done), float(total))]
    assert type(reports[0].done) is type(reports[0].total) is float


def test_outside_a_task_and_in_another_thread_nothing_happens() -> None:
    reports: list[TaskProgress] = []
    flcore.progress(1, 2)
    with report_progress(reports.append, "a", "train", 1, 2):
        other = threading.Thread(target=flcore.progress, args=(1, 2))
        other.start()
        other.join()
    flcore.progress(1, 2)
    assert not reports


def test_two_reports_of_a_task_are_a_second_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now, reports = [100.0], list[TaskProgress]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with report_progress(reports.append, "a", "train", 1, 2):
        for tenth in range(21):
            now[0] = 100 + tenth / 10
            flcore.progress(tenth, 20)
    assert [report.done for report in reports] == [0, 10, 20]
    with report_progress(reports.append, "a", "validate", 1, 2):
        flcore.progress(1, 1)
    assert reports[-1].task == "validate", "the next task reports at once"


@pytest.mark.serial
def test_a_call_that_is_not_due_takes_less_than_two_microseconds() -> None:
    program = """
import time, flcore
from flcore.progress import report_progress
with report_progress(lambda _: None, "a", "train", 1, 2):
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for done in range(10_000):
            flcore.progress(done, 10_000)
        best = min(best, (time.perf_counter() - start) / 10_000)
print(best)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) < 2e-6


def test_a_jobs_code_reports_in_a_task(tmp_path: Any) -> None:
    from flcore.client.executor import Executor

    (tmp_path / "job.toml").write_text(
        'name = "t"\nclients = ["a"]\n[server]\nmodel = "t.py:train"\nrounds = 3\n[client]\nexecutor = "t.py"\n'
        '[tasks.train]\nreturns = "metrics"\n'
    )
    (tmp_path / "t.py").write_text(
        "import flcore\ndef train(model, task):\n    flcore.progress(1, 4)\n    return flcore.Update(weight=1)\n"
    )
    reports: list[TaskProgress] = []
    site = flcore.Site("a")
    executor = Executor(flcore.Job.load(tmp_path), site, on_progress=reports.append)
    executor.run({}, flcore.Task("train", 2, 3, 0, {}, site))
    assert [str(report) for report in reports] == ["a: round 2 of 3: train 1 of 4 (25 %)"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_reports_the_progress_of_its_clients(workers: int, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'name = "t"\nclients = ["a", "b"]\n[server]\nmodel = "t.py:init"\nrounds = 1\n[client]\nexecutor = "t.py"\n'
        '[tasks.train]\nreturns = "weights"\n'
    )
    (tmp_path / "t.py").write_text(
        "import numpy as np, flcore\ndef init(seed): return {'w': np.zeros(3, np.float32)}\n"
        "def train(model, task):\n    flcore.progress(1, 2)\n    return flcore.Update({'w': model['w']}, weight=1)\n"
    )
    events: list[object] = []
    flcore.run(tmp_path, workers=workers, observe=events.append)
    told = {str(event) for event in events if isinstance(event, TaskProgress)}
    assert told == {f"{client}: round 1 of 1: train 1 of 2 (50 %)" for client in "ab"}
