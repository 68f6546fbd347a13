"""Notebooks: the cells of docs/notebook.ipynb, as a script and in a kernel, and how results are shown there."""

import json
import re
import runpy
import sys
import threading
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import History, RoundRecord
from flcore.model.checkpoint import open_model, save
from flcore.model.model import Model
from flcore.progress import TaskProgress
from flcore.server import events
from flcore.simulation.notebook_progress import ProgressLine, notebook_progress
from flcore.status import StatusBoard
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
    line = "<History: 60 rounds; round 60: 0 of 2 clients, loss 0.01667, 2.00 MB, 0.50 s, the best so far>"
    assert repr(history) == line
    assert repr(history[2]) == "<RoundRecord 3: 0 of 2 clients, loss 0.3333, 2.00 MB, 0.50 s, the best so far>"
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


def test_the_progress_of_a_run() -> None:
    board = StatusBoard("digits", 60, ("a", "b", "c"))
    line = ProgressLine(board)
    tell = events.notify_all(board.observe, line.observe)
    assert "0/60 rounds, waiting for clients, 0 B, 0 s" in line.html()
    tell(events.ClientJoined("a", 1))
    assert "1 client connected" in line.html()
    tell(events.ClientJoined("b", 2))
    assert "2 clients connected" in line.html()
    tell(events.TaskSent("train", 1, 3, ("a", "b", "c"), ""))
    tell(events.TaskAnswered("train", "a", 1, 1, 1.0, 9, ""))
    tell(events.ClientFailed("train", "b", "it broke", 1))
    assert "train 1/3 clients, 1 failed, 1 lost" in line.html()
    tell(events.ClientJoined("c", 3))
    tell(TaskProgress("c", "train", 1, 60, 1, 4))
    assert "train 1/3 clients (c 25 %), 1 failed" in line.html()
    tell(events.BytesTransferred(1_000_000, 500_000))
    tell(events.RoundFinished(record(7, validate={HOSTILE: 0.5, "loss": 0.25})))
    tell(events.NoBestModel("acuracy", ("loss", "accuracy")))
    tell(events.RunEnded("the job failed", failed=True, end="failed"))
    shown = line.html()
    assert "<progress value='7' max='60'>" in shown and "7/60 rounds, failed, " in shown and "1.50 MB" in shown
    assert "did you mean &#x27;accuracy&#x27;?" in shown and "<script" not in shown and shown.isprintable()


def test_names_of_clients_and_tasks_in_the_progress_are_escaped() -> None:
    board = StatusBoard("<b>", 3)
    line = ProgressLine(board)
    for event in (
        events.ClientJoined(HOSTILE, 1),
        events.TaskSent(HOSTILE, 1, 1, (HOSTILE,), ""),
        TaskProgress(HOSTILE, HOSTILE, 1, 3, 1, 4),
    ):
        board.observe(event)
    shown = line.html()
    assert "25 %" in shown and "&lt;script&gt;" in shown and "<script" not in shown and shown.isprintable()
    assert "<b>&lt;b&gt;</b>" in shown


def test_the_output_is_updated_from_a_thread_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, is_updated = list[str](), threading.Event()

    class Handle:
        def update(self, html: str) -> None:
            shown.append(html)
            is_updated.set()

    def display(html: str, **_: bool) -> Handle:
        shown.append(html)
        return Handle()

    ipython = types.ModuleType("IPython.display")
    ipython.HTML, ipython.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    board = StatusBoard("digits", 60)
    with pytest.raises(KeyError), notebook_progress(board) as observe:
        events.notify_all(board.observe, observe)(events.ClientJoined("a", 1))
        assert is_updated.wait(60.0)
        raise KeyError("before the run has begun")
    assert "waiting for clients" in shown[0] and "1 client connected" in shown[1]
    assert "failed" in shown[-1], "the run could not begin"
