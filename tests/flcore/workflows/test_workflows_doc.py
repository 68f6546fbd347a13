"""docs/workflows.md and the examples in the workflows' files are true: contracts are parsed, the job is run."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore.job.parsing import parse_contract
from flcore.workflows.bundled import WORKFLOWS
from tests.flcore.workflows.staged import results_of

DOC = (Path(__file__).parents[3] / "docs/workflows.md").read_text()
TOMLS = re.findall(r"```toml\n(.*?)```", DOC, re.DOTALL)
TASKS: dict[str, Any] = {
    "fed_avg": {"train": {"returns": "weights"}, "validate": {"returns": "metrics"}},
    "cyclic": {"train": {"returns": "weights"}},
}


def completed(text: str) -> dict[str, Any]:
    """A contract of the keys of an example, and of those that it leaves out."""
    content: dict[str, Any] = {"name": "job", "clients": 3, "client": {"executor": "code.py"}} | tomllib.loads(text)
    return {"tasks": TASKS.get(content["server"]["workflow"])} | content


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_short_and_its_example_is_a_contract(name: str) -> None:
    module = importlib.import_module(f"flcore.workflows.{name}")
    source, doc = inspect.getsource(module), inspect.getdoc(module)
    assert len(source.splitlines()) < 80
    assert doc is not None and re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.|NVIDIA FLARE", doc), "its source"
    example = "\n".join(line[4:] for line in doc.splitlines() if line.startswith("    "))
    assert parse_contract(completed(example), name).server.workflow == name


def test_each_workflow_of_the_page_has_an_example_that_is_a_contract() -> None:
    named = [parse_contract(completed(text), "the page").server.workflow for text in TOMLS]
    assert re.findall(r"^## (\w+)$", DOC, re.MULTILINE) == named
    assert len(set(named)) == len(named) >= 5


def test_the_table_of_the_page_has_all_workflows() -> None:
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(", DOC, re.MULTILINE)) == sorted(WORKFLOWS)


def test_the_job_of_statistics_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (python,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    job = tmp_path / "ages"
    job.mkdir()
    (job / "job.toml").write_text(TOMLS[-1])
    (job / "columns.py").write_text(python)
    draw = np.random.default_rng(0)
    rows = {name: np.column_stack([draw.integers(0, 100, 200), draw.gamma(2, 5, 200)]) for name in ("north", "south")}
    rows["west"] = rows["north"][:7]  # below the smallest count
    monkeypatch.chdir(tmp_path)
    for name, table in rows.items():
        np.savetxt(f"{name}.csv", table, delimiter=",")
    flcore.run(job, out=tmp_path / "out")
    results = results_of(tmp_path / "out")
    age, dose = np.concatenate([rows["north"], rows["south"]]).T
    found = results["columns"]
    assert results["sites"] == ["north", "south", "west"]
    assert {name: each["sites"] for name, each in found.items()} == {"age": 2, "dose": 2, "dose above 60": 2}
    assert found["age"]["histogram"]["counts"] == np.histogram(age, [-np.inf, 20, 40, 60, 80, np.inf])[0].tolist()
    assert found["dose"]["mean"] == pytest.approx(dose.mean())
    assert found["dose"]["variance"] == pytest.approx(dose.var())
    assert found["dose above 60"]["count"] == (age > 60).sum()
    keys = set(re.findall(r"`(\w+)`", DOC.partition("by column:")[2].partition("## Your own")[0]))
    assert set(found["age"]) | set(found["age"]["histogram"]) | {"missing", "refused"} <= keys
