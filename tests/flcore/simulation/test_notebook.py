"""Notebooks: the cells of docs/notebook.ipynb, as a script and in a kernel, and how results are shown there."""

import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore import History, RoundRecord
from flcore.job.contract import Contract
from flcore.model.checkpoint import open_model, save
from flcore.model.model import Model
from flcore.progress import TaskProgress
from flcore.server import events
from flcore.simulation.notebook_progress import ProgressLine
from tests.test_readme import blocks

DOCS = Path(__file__).parents[3] / "docs"
CELLS = ["".join(cell["source"]) for cell in json.loads((DOCS / "notebook.ipynb").read_text())["cells"]]
HOSTILE = "<script>alert('x')</script>\n\x1b[2J"

needs_jupyter = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("nbclient", "ipykernel")), reason="no Jupyter here (make test-adapters)"
)


def test_the_notebook_has_the_cells_of_the_page() -> None:
    assert [block.rstrip("\n") for block in blocks("python", (DOCS / "notebooks.md").read_text())] == CELLS


def test_the_cells_as_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("\n".join(CELLS))
    found = runpy.run_path("script.py", run_name="__main__")
    history, model = found["outcome"]
    assert history[-1].validate["error"] < history[0].validate["error"] / 5
    assert float(model.arrays()["slope"]) == pytest.approx(2, abs=0.2)
    assert (tmp_path / "notebook.flpack").is_file()


@needs_jupyter
@pytest.mark.long
@pytest.mark.filterwarnings("default")  # those of Jupyter's packages are theirs
def test_the_notebook_in_a_kernel(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads((DOCS / "notebook.ipynb").read_text(), as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("flcore.run(job, workers=2, progress=False).model.arrays()"))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, resources=resources, kernel_name="python3").execute()
    _, _, job, run, model, packed, workers = (cell.outputs for cell in notebook.cells)
    assert job[0].data["text/plain"].startswith("<Job 'notebook': fed_avg, 30 rounds, 2 clients")
    progress, outcome = run
    assert re.search(r"<progress value='30' max='30'></progress> 30/30 rounds, done, error 0\.\d+", str(progress.data))
    assert "History: 30 rounds" in outcome.data["text/html"] and "<td>slope</td>" in outcome.data["text/html"]
    assert "functions.py" in packed[0].data["text/plain"] and (tmp_path / "notebook.flpack").is_file()
    assert workers[-1].data["text/plain"] == model[0].data["text/plain"]  # in processes, from the functions' source


def record(number: int, **fields: Any) -> RoundRecord:
    return RoundRecord(number, ("a", "b"), seconds={"round": 0.5}, bytes_sent=2_000_000, **fields)


def test_a_history_in_a_line_and_in_a_table() -> None:
    history = History(record(number, validate={"loss": 1 / number}, is_best=True) for number in range(1, 61))
    line = "<History: 60 rounds; round 60: 0 of 2 clients, loss 0.01667, 2.0 MB, 0.50 s, the best so far>"
    assert repr(history) == line
    assert repr(history[2]) == "<RoundRecord 3: 0 of 2 clients, loss 0.3333, 2.0 MB, 0.50 s, the best so far>"
    table = history.to_html()
    assert "History: the last 50 of 60 rounds" in table and table.count("<tr>") == 51
    assert "<td>60</td><td>0 of 2</td><td>0.01667</td><td>0</td><td>2.0</td><td>0.50</td><td>best</td>" in table
    assert repr(History()) == "<History: no rounds>" and "0 rounds" in History().to_html()


def test_names_of_clients_and_metrics_are_escaped_and_bounded() -> None:
    many = {f"{HOSTILE}{number}" + "x" * 1000: 1.0 for number in range(200)}
    history = History([record(1, train=many, failed={"train": {HOSTILE: HOSTILE}})])
    shown = [repr(history), repr(history[0]), history.to_html()]
    assert all(len(text) < 3000 and text.isprintable() for text in shown)
    assert "and 192 more" in shown[0] and "<script" not in shown[2] and "&lt;script&gt;" in shown[2]


def test_a_model_in_a_line_and_in_a_table(tmp_path: Path) -> None:
    arrays = {f"<b>{number}": np.zeros((2, 3), np.float32) for number in range(60)}
    save(arrays, tmp_path / "model.safetensors")
    with open_model(tmp_path / "model.safetensors") as stored:
        sizes = "60 tensors, 360 elements, float32, 1,440 bytes"
        assert repr(Model.of(arrays)) == f"<Model: {sizes}>"
        assert repr(stored) == f"<StoredModel: {sizes}, {tmp_path / 'model.safetensors'}>"
        for table in (Model.of(arrays)._repr_html_(), stored._repr_html_()):
            assert "<td>&lt;b&gt;49</td><td>float32</td><td>2 x 3</td><td>6</td>" in table and "<b>" not in table
            assert "<td>10 more</td>" in table and "&lt;b&gt;50" not in table


@pytest.fixture
def contract() -> Contract:
    return flcore.Job.load("digits").contract


def test_the_progress_of_a_run(contract: Contract) -> None:
    line = ProgressLine(contract)
    assert "0/60 rounds, waiting for clients, 0.0 MB, 0 s" in line.html() and not line.changed.is_set()
    line(events.ClientJoined("a", 2))
    assert "2 clients connected" in line.html() and line.changed.is_set()
    line(events.TaskSent("train", 1, 3, ("a", "b", "c"), ""))
    line(events.TaskAnswered("train", "a", 1, 1, 1.0, 9, ""))
    line(events.ClientFailed("train", "b", "it broke"))
    assert "train 1/3 clients, 1 failed" in line.html()
    line(TaskProgress(HOSTILE, "train", 1, 60, 1, 4))
    assert "25%" in line.html() and "<script" not in line.html()
    line(events.BytesTransferred(1_000_000, 500_000))
    line(events.RoundFinished(record(7, validate={HOSTILE: 0.5, "loss": 0.25})))
    line(events.NoBestModel("acuracy", ("loss", "accuracy")))
    line.end("failed")
    shown = line.html()
    assert "<progress value='7' max='60'>" in shown and "7/60 rounds, failed, " in shown and "1.5 MB" in shown
    assert "did you mean &#x27;accuracy&#x27;?" in shown and "<script" not in shown and shown.isprintable()
