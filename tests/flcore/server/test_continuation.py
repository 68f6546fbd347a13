"""A server that was killed goes on: in the same round, and with the same bits.

A kill is a copy of the run's directory, taken while the server stands still: a killed process leaves what it has
written. `tests/faults` kills at every point, and real processes.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore import Arrays, ModelGone, Task, Update, load
from flcore.errors import RunDiffers, RunExists
from flcore.server.run_state import RunState
from tests.flcore.conftest import Stage, adding

pytestmark = pytest.mark.parametrize("stage", ["in-process"], indirect=True)

NAMES = ("client-1", "client-2", "client-3")


def kill(monkeypatch: pytest.MonkeyPatch, method: str, hit: int, source: Path, target: Path) -> None:
    """Copy a run's directory when the `hit`-th call of a method of its record has returned."""
    original, hits, standing = getattr(RunState, method), [0], threading.Lock()

    def counted(*args: Any) -> None:
        with standing:
            original(*args)
            hits[0] += 1
            if hits[0] == hit:
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("*status.json*"))  # replaced meanwhile

    monkeypatch.setattr(RunState, method, counted)


def play(stage: Stage, out: Path, asked: list[tuple[str, int]] | None = None, **options: Any) -> dict[str, Any]:
    """Run the job to its end; return the published tensors. `asked` gets the client and the round of each training."""
    given: dict[str, Any] = {"wait_for": 3, "rounds": 3, "out": out, "best": None, "durability": "disk"}
    stage.open(**(given | options))
    for number, name in enumerate(NAMES):
        stage.client(name, counting(name, adding(0.1 * (number + 1), number + 1), [] if asked is None else asked))
    stage.result()
    stage.close()
    return load(out / "model.safetensors")


def counting(name: str, train: Callable[[Arrays, Task], Update], asked: list[tuple[str, int]]) -> Any:
    def counted(model: Arrays, task: Task) -> Update:
        asked.append((name, task.round))
        return train(model, task)

    return counted


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_answers_with_a_receipt_count_and_only_the_others_are_asked_for(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "add_answer", 5, out, copy)  # the second receipt of round 2
    expected = play(stage, out, plan=plan)
    with RunState(copy / "state.sqlite") as state:
        answered = {each.client for each in state.answers(5)}
    assert len(answered) == 2
    asked: list[tuple[str, int]] = []
    assert same(play(stage, copy, asked, plan=plan), expected)
    assert sorted(asked) == sorted(
        [(name, 2) for name in NAMES if name not in answered] + [(name, 3) for name in NAMES]
    )
    lines = [(path / "history.jsonl").read_text().count("\n") for path in (out, copy)]
    assert lines == [3, 3]
    assert not (copy / ".updates").exists()
    assert not (copy / ".published").exists()


def test_with_receipts_for_what_is_in_memory_the_round_begins_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "end_call", 5, out, copy)  # round 2: sampled and trained
    expected = play(stage, out, durability="memory")
    asked: list[tuple[str, int]] = []
    assert same(play(stage, copy, asked, durability="memory"), expected)
    assert sorted(asked) == [(name, number) for name in NAMES for number in (2, 3)]


def test_an_update_that_the_disk_has_lost_is_asked_for_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "end_call", 5, out, copy)
    expected = play(stage, out)
    directory = next((copy / ".updates").glob("5-client-2-*"))
    with (directory / "segment-0.arrows").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    asked: list[tuple[str, int]] = []
    assert same(play(stage, copy, asked), expected)
    assert sorted(asked) == sorted([("client-2", 2)] + [(name, 3) for name in NAMES])


def test_a_run_that_is_over_is_not_continued(stage: Stage, tmp_path: Path) -> None:
    play(stage, tmp_path / "out")
    with pytest.raises(RunExists, match="holds a run already: 3 rounds"):
        stage.open(out=tmp_path / "out")


def test_another_contract_is_refused_with_the_difference(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch, "add_answer", 5, tmp_path / "out", tmp_path / "copy")
    play(stage, tmp_path / "out")
    before = lasting_files(tmp_path / "copy")
    with pytest.raises(
        RunDiffers, match=r"its contract is another one:\n  server\.rounds: the run has 3, the job has now 4\n.*--fresh"
    ):
        stage.open(out=tmp_path / "copy", rounds=4, best=None)
    assert lasting_files(tmp_path / "copy") == before


def lasting_files(run: Path) -> list[str]:
    """The files of a run but those of a running process."""
    found = [str(path.relative_to(run)) for path in run.rglob("*")]
    return sorted(
        name for name in found if not name.startswith((".models", ".staging", ".reserve", "run.lock", "state.sqlite"))
    )


def test_a_fresh_run_leaves_the_unfinished_one_beside_it_which_can_go_on(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "add_answer", 5, out, copy)
    expected = play(stage, out)
    assert same(play(stage, copy, fresh=True), expected)
    asked: list[tuple[str, int]] = []
    assert same(play(stage, tmp_path / "copy.1", asked), expected)
    assert {number for _, number in asked} == {2, 3}


FLOW = """
import numpy as np
import flcore

def momentum(control):
    for _ in control.remaining_rounds():
        model = control.last_model
        mean = control.train(model, control.sample()).aggregate().arrays()
        step = {name: mean[name] - array for name, array in model.arrays().items()}
        for name, array in step.items():
            array += np.float32(0.5) * control.state.get(name, np.zeros_like(array))
            control.state[name] = array
        control.publish(control.model_of({name: model.arrays()[name] + step[name] for name in step}), {})

def reading(control):
    model, means = control.initial_model, []
    for _ in control.rounds():
        model = control.train(model, control.sample()).aggregate()
        means.append(float(model.arrays()["w"].mean()))
        control.publish(model, {})
"""


@pytest.mark.parametrize(("method", "hit"), [("add_answer", 5), ("end_call", 4), ("end_round", 1), ("end_round", 2)])
def test_a_workflow_with_a_state_of_its_own_goes_on_with_it(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, hit: int
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    out, copy = tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, method, hit, out, copy)
    expected = play(stage, out, workflow="flow.py:momentum")
    assert np.ptp(expected["w"]) == 0
    assert same(play(stage, copy, workflow="flow.py:momentum"), expected)


def test_a_model_of_an_earlier_round_cannot_be_read_any_more(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    play(stage, tmp_path / "out", workflow="flow.py:reading")
    with pytest.raises(ModelGone, match=r"the model of round 1 was made before the server was restarted"):
        play(stage, tmp_path / "copy", workflow="flow.py:reading")


def test_a_workflow_whose_code_has_changed_is_refused_with_the_difference(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    kill(monkeypatch, "end_round", 2, tmp_path / "out", tmp_path / "copy")
    expected = play(stage, tmp_path / "out", workflow="flow.py:momentum")
    (tmp_path / "flow.py").write_text(FLOW.replace("0.5", "0.9"))
    with pytest.raises(RunDiffers, match=r"(?s)its workflow is another one:.*-.*0\.5.*\+.*0\.9"):
        stage.open(out=tmp_path / "copy", workflow="flow.py:momentum", rounds=3, best=None)
    (tmp_path / "flow.py").write_text(FLOW)
    assert same(play(stage, tmp_path / "copy", workflow="flow.py:momentum"), expected)
