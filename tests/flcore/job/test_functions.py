"""A job of functions: it runs as it is, and is packed if its source can stand in a file."""

import functools
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore import Job, JobError
from flcore.client.task import Update as AnUpdate
from flcore.errors import PackError
from flcore.job.pack import open_pack
from tests.flcore.job import other_functions

STEP = 1.0


def zeros(seed: int) -> dict[str, Any]:
    import numpy as np

    return {"w": np.full(3, float(seed))}


class Grower:
    """A class that a function uses."""

    def __init__(self, step: float) -> None:
        self.step = step

    def grow(self, array: Any) -> Any:
        return array + self.step


def grown(array: Any) -> Any:
    (first,) = [Grower(part).grow(array) for part in (1,)]
    return first


def step(model: Any, task: Any) -> flcore.Update:
    return flcore.Update({"w": grown(model["w"])}, weight=task.hyperparameters.get("weight", 1))


def largest(model: Any, _: Any) -> flcore.Update:
    import numpy as np

    def top(array: Any) -> float:
        return float(np.max(array))

    return flcore.Update(weight=1, metrics={"largest": top(model["w"])})


def of(**others: Any) -> Job:
    given: dict[str, Any] = {"model": zeros, "train": step, "rounds": 2, "seed": 4, **others}
    return Job.of(**given)


def values(outcome: flcore.Outcome) -> list[float]:
    found: list[float] = outcome.model.arrays()["w"].tolist()
    return found


def test_it_runs_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = flcore.run(of(validate=largest, best="largest:max", clients=["a", "b"]))
    assert values(outcome) == [6, 6, 6] and [each.validate["largest"] for each in outcome.history] == [5, 6]
    assert values(flcore.run(of(), rounds=3, seed=0, clients=1)) == [3, 3, 3]
    assert list(tmp_path.iterdir()) == []


def test_its_functions_may_use_all_of_the_program_while_they_run_here() -> None:
    here = np.ones(3)

    def train(model: Any, _: flcore.Task) -> flcore.Update:
        return flcore.Update({"w": model["w"] + here * STEP}, weight=1)

    assert values(flcore.run(of(train=train))) == [6, 6, 6]
    with pytest.raises(PackError, match=r"STEP in train: .*hyperparameters; .*here in train"):
        flcore.run(of(train=train), workers=1)


@pytest.mark.long
def test_worker_processes_and_a_pack_get_the_source(tmp_path: Path) -> None:
    job = of(uses=[grown, Grower], validate=largest, hyperparameters={"weight": 2}, changes={"server.quorum": 2})
    assert values(flcore.run(job, workers=1)) == [6, 6, 6]
    packed = job.pack(tmp_path / "x.flpack")
    assert [file.name for file in packed.files] == ["job.toml", "functions.py"] and packed.left_out == []
    unpacked = open_pack(packed.path).unpack(tmp_path / "job")
    assert unpacked.contract == job.contract and unpacked.code_digest == job.code_digest
    assert unpacked.contract.server.quorum == 2
    assert values(flcore.run(Job.load(tmp_path / "job"), workers=0)) == [6, 6, 6]
    again = job.pack(tmp_path / "y.flpack")
    assert again.digest == packed.digest
    with zipfile.ZipFile(packed.path) as archive:
        text = archive.read("functions.py").decode()
    assert (
        text.startswith("from __future__ import annotations\n\nimport flcore\n\n\ndef grown(array")
        and "class Grower:\n" in text
    )
    assert text.endswith("initial_model = zeros\ntrain = step\nvalidate = largest\n")


class Vector(zipfile.ZipInfo):
    """A class whose base is in a module."""

    def ones(self) -> Any:
        return np.ones(3)


def start(seed: int) -> dict[str, Any]:
    return {"w": Vector().ones() * np.float64(seed)}


def test_modules_may_be_imported_for_all(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"np in Vector, start: .* uses=\[np\]; zipfile in Vector: .*=\[zipfile\]$"):
        of(model=start, uses=[Vector, Grower, grown]).pack(tmp_path / "x.flpack")
    job = of(model=start, uses=[Vector, Grower, grown, np, zipfile])
    unpacked = open_pack(job.pack(tmp_path / "x.flpack").path).unpack(tmp_path / "job")
    text = (unpacked.directory / "functions.py").read_text()
    assert text.splitlines()[2:5] == ["import flcore", "import numpy as np", "import zipfile"]
    assert values(flcore.run(unpacked, workers=0)) == values(flcore.run(job)) == [6, 6, 6]


def test_the_digest_follows_the_source() -> None:
    assert of().code_digest == of(seed=5).code_digest != of(train=largest).code_digest


SOURCELESS = """
def train(model, task):
    if task.name in {"a", "b", "c"}:
        return None
    return [value + %s for value in model.%s]
"""


def made_by_exec(number: int, name: str) -> Any:
    names: dict[str, Any] = {}
    exec(SOURCELESS % (number, name), names)
    return names["train"]


def test_functions_without_source_that_differ_have_other_digests() -> None:
    digests = [of(train=made_by_exec(*each)).code_digest for each in ((1, "w"), (2, "w"), (1, "v"), (1, "w"))]
    assert len({*digests}) == 3 and digests[0] == digests[3]
    assert of(train=max).code_digest != of(train=functools.partial(step)).code_digest


def test_the_digest_of_a_function_without_source_is_the_same_in_each_process() -> None:
    program = (
        "from tests.flcore.job.test_functions import made_by_exec, of\n"
        "print(of(train=made_by_exec(1, 'w')).code_digest)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def renamed(model: Any, task: Any) -> flcore.Update:
    return flcore.Update(model, weight=1)


renamed.__name__ = "other"


def outer() -> Any:
    def indented(model: Any, task: Any) -> flcore.Update:
        lines = """A text whose lines
are not indented."""
        return flcore.Update(model, weight=len(lines))

    return indented


def uses_modules(model: Any, task: Any) -> flcore.Update:
    return flcore.Update({"w": np.abs(model["w"]), "x": zipfile.ZipFile, "y": absent}, weight=1)  # type: ignore[name-defined]  # noqa: F821


def annotated(model: flcore.Arrays, task: Any) -> flcore.Update:
    return AnUpdate({"w": other_functions.double(model["w"])}, weight=1)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@decorated
def with_decorator(model: Any, task: Any, factor: float = STEP) -> Any:
    return [factor for np in range(3)]


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (step, ["grown in step: give it in uses=[grown]"]),
        (
            uses_modules,
            [
                "absent in uses_modules: it is not defined",
                "np in uses_modules: write `import numpy as np` inside",
                "zipfile",
            ],
        ),
        (
            annotated,
            [
                "AnUpdate in annotated: write `from flcore.client.task import Update` inside",
                "other_functions in annotated: write `import tests.flcore.job.other_functions as other_functions`",
            ],
        ),
        (with_decorator, ["STEP in with_decorator", "decorated in with_decorator: give it in uses=[decorated]"]),
    ],
)
def test_names_that_a_file_would_lack_are_listed(train: Any, names: list[str], tmp_path: Path) -> None:
    with pytest.raises(PackError, match="expected functions that can stand in a file of their own") as caught:
        of(train=train).pack(tmp_path / "x.flpack")
    listed = str(caught.value).partition("themselves: ")[2].split("; ")
    assert len(listed) == len(names)
    assert all(line.startswith(name) for line, name in zip(listed, names, strict=True)), listed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"train": lambda model, task: None}, "expected a function that is written with def"),
        ({"uses": [max]}, "expected a function that is written with def, got builtin_function_or_method; write one"),
        ({"train": functools.partial(step)}, "expected a function that is written with def, got partial"),
        ({"uses": [Grower(1).grow]}, "expected a function that is written with def, got method"),
        ({"train": renamed}, "other: expected the name after def or class, renamed, as its __name__"),
        (
            {"train": outer()},
            "indented: expected source that can stand in a file of its own, got .*; define it at the top",
        ),
        ({"uses": [type("Made", (), {})]}, "Made: expected a function with source, got one without"),
        ({"uses": [other_functions.step]}, "expected each name to mean one function, got two for step; rename"),
    ],
)
def test_functions_that_cannot_be_packed(others: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=message):
        of(**others).pack(tmp_path / "x.flpack")
    if "partial" in message:
        assert values(flcore.run(of(**others))) == [6, 6, 6]  # here it runs as it is


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"model": {"w": np.zeros(1)}}, "model: expected a function, got dict"),
        ({"rounds": 0}, "the job: server.rounds: .* greater than or equal to 1"),
        ({"best": "loss:max"}, "needs a task that returns metrics"),
        ({"changes": {"server.qorum": 2}}, "server.qorum: .* nearest one is server.quorum"),
        ({"name": "../x"}, "the job: name: "),
        ({"clients": "north"}, "clients: expected a number of clients or a list of names, got str"),
        ({"clients": None}, "clients: expected a number of clients or a list of names, got NoneType"),
    ],
)
def test_a_job_that_is_wrong_is_refused_at_once(others: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        of(**others)


def test_code_in_files_is_refused() -> None:
    with pytest.raises(JobError, match=r"server.workflow: expected a bundled name, .* got workflow.py:mine"):
        flcore.run(of(changes={"server.workflow": "workflow.py:mine"}))


def test_a_job_in_a_line() -> None:
    assert repr(of()) == "<Job 'notebook': fed_avg, 2 rounds, 2 clients, tasks train; functions of this program>"
    assert repr(Job.load("digits")).startswith("<Job 'digits': fed_avg, 60 rounds, 6 clients, tasks train, validate; /")
