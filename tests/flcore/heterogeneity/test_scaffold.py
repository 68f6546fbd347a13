"""SCAFFOLD: against an oracle from the paper, without drift, and with the right variates after crashes and losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import flcore
from flcore import JobError, SpecError
from flcore.heterogeneity import Scaffold, control_variates, model_tensors, with_control_variates
from flcore.heterogeneity.own_variate import read_variate, write_variate
from tests.flcore.heterogeneity.quadratics import (
    CLIENTS,
    job_of,
    model_of,
    optimum,
    scaffold_oracle,
)
from tests.flcore.server.test_continuation import kill

RATE, STEPS = 0.1, 10
COUNTED = "scaffold/counted_rounds"


def scaffold_job(directory: Path, rounds: int, **keys: Any) -> flcore.Job:
    server = {"workflow": "scaffold", "rule": "unweighted_mean"} | keys
    settings = {"learning_rate": RATE, "steps": STEPS}
    return job_of("ScaffoldClient", directory, rounds=rounds, hyperparameters=settings, **server)


def sampled_in(outcome: flcore.Outcome) -> list[list[int]]:
    return [sorted(int(name.removeprefix("client-")) - 1 for name in record.updates) for record in outcome.history]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_workflow_is_the_papers_algorithm(tmp_path: Path, fraction: float) -> None:
    """With half of the clients in a round, the change of the control variate is scaled by |S|/N."""
    outcome = flcore.run(scaffold_job(tmp_path, 6, fraction=fraction), workers=0)
    sampled = sampled_in(outcome)
    assert {len(clients) for clients in sampled} == {round(CLIENTS * fraction)}
    x, c, _ = scaffold_oracle(sampled, STEPS, RATE)
    state = outcome.model.arrays()
    np.testing.assert_allclose(state["layer.w"], x, rtol=1e-12)
    np.testing.assert_allclose(state["control/layer.w"], c, rtol=1e-11, atol=1e-12)
    last = [max((at for at, clients in enumerate(sampled, 1) if i in clients), default=0) for i in range(CLIENTS)]
    assert state[COUNTED].tolist() == last


def test_it_has_no_drift_where_fed_avg_has(tmp_path: Path) -> None:
    """The clients' curvatures and optima differ, and each takes ten steps."""
    settings = {"learning_rate": RATE, "steps": STEPS}
    averaging = job_of("AveragingClient", tmp_path, rounds=40, hyperparameters=settings, rule="unweighted_mean")
    right = optimum(np.ones(CLIENTS))
    assert np.linalg.norm(model_of(flcore.run(averaging, workers=0)) - right) > 0.17
    everyone = flcore.run(scaffold_job(tmp_path, 40), workers=0)
    assert np.linalg.norm(model_of(everyone) - right) < 1e-7
    half = flcore.run(scaffold_job(tmp_path, 80, fraction=0.5), workers=0)
    assert np.linalg.norm(model_of(half) - right) < 1e-6


def test_compressed_uploads_and_downloads_do_not_bend_it(tmp_path: Path) -> None:
    wire = {"download": "bfloat16", "upload": "int8[256]"}
    outcome = flcore.run(scaffold_job(tmp_path, 30, wire=wire), workers=0)
    assert np.linalg.norm(model_of(outcome) - optimum(np.ones(CLIENTS))) < 0.02
    assert outcome.model.arrays()[COUNTED].tolist() == [30] * CLIENTS


def test_a_run_that_was_killed_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the kill, the clients have stored their variates of a round that does not count yet, and train it again."""
    job, out, copy = scaffold_job(tmp_path, 5), tmp_path / "out", tmp_path / "copy"
    kill(monkeypatch, "end_call", 8, out, copy)  # round 3: sampled and trained
    expected = flcore.run(job, workers=0, out=out).model.arrays()
    stored = sorted(path.name for path in (copy / ".clients/client-1").iterdir())
    assert stored == ["scaffold-00002.safetensors", "scaffold-00003.safetensors"]
    assert not (out / ".clients").exists(), "the run is over"
    found = flcore.run(job, workers=0, out=copy).model.arrays()
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_a_lost_update_leaves_the_variates_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """client-1 stores its variate and fails: its change never arrives, so its next round begins where it was before."""
    original: Callable[..., flcore.Update] = Scaffold.update

    def failing(self: Scaffold, *arguments: Any, **named: Any) -> flcore.Update:
        update = original(self, *arguments, **named)
        if (self._directory.name, self._round) == ("client-1", 3):
            raise RuntimeError("the network is down")
        return update

    monkeypatch.setattr(Scaffold, "update", failing)
    outcome = flcore.run(scaffold_job(tmp_path, 40), workers=0)
    sampled = sampled_in(outcome)
    assert sampled[2] == [1, 2, 3, 4, 5] and sampled[3] == [0, 1, 2, 3, 4, 5]
    x, c, own = scaffold_oracle(sampled, STEPS, RATE)
    np.testing.assert_allclose(c, own.mean(axis=0), atol=1e-12)  # what the loss must not break
    np.testing.assert_allclose(model_of(outcome), x, rtol=1e-11)
    assert np.linalg.norm(model_of(outcome) - optimum(np.ones(CLIENTS))) < 1e-7


def test_a_skipped_round_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client fails in round 2, which is below its quorum: the answers of the others do not count."""
    original = Scaffold.__init__

    def failing(self: Scaffold, state: Any, task: flcore.Task) -> None:
        if (task.site.name, task.round) == ("client-1", 2):
            raise RuntimeError("the data is gone")
        original(self, state, task)

    monkeypatch.setattr(Scaffold, "__init__", failing)
    outcome = flcore.run(scaffold_job(tmp_path, 4, quorum=CLIENTS, on_quorum_failure="skip"), workers=0)
    assert [bool(record.skipped) for record in outcome.history] == [False, True, False, False]
    x, c, _ = scaffold_oracle([range(CLIENTS)] * 3, STEPS, RATE)
    np.testing.assert_allclose(model_of(outcome), x, rtol=1e-12)
    np.testing.assert_allclose(outcome.model.arrays()["control/layer.w"], c, rtol=1e-11)


# One client by itself.


def task(directory: Path | None, round_number: int, client: str = "b") -> flcore.Task:
    site = flcore.Site(client, ("a", "b"), state_directory=directory)
    return flcore.Task("train", round_number, 9, 0, {}, site)


def state_of(counted: int = 0, control: float = 0.0) -> dict[str, Any]:
    state = with_control_variates({"w": np.array([1.0, 2.0], np.float32)}, clients=2)
    state["control/w"][:] = control
    state[COUNTED][1] = counted
    return state


def trained(scaffold: Scaffold, by: float) -> flcore.Update:
    return scaffold.update({"w": scaffold.model["w"] + np.float32(by)}, steps=2, learning_rate=0.5)


def test_the_equations_of_one_round(tmp_path: Path) -> None:
    update = trained(Scaffold(state_of(), task(tmp_path, 1)), 3.0)
    assert {name: array.tolist() for name, array in update.arrays.items()} == {
        "w": [3.0, 3.0],
        "control/w": [-3.0, -3.0],  # c_i⁺ = 0 - 0 - 3 / (2 · 0.5)
        COUNTED: [0, 0],
    }
    second = Scaffold(state_of(counted=1, control=-2.0), task(tmp_path, 2))
    corrected = second.correct({"w": np.zeros(2, np.float32)})["w"]
    assert corrected.tolist() == [1.0, 1.0] and corrected.dtype == np.float32  # - c_i + c = 3 - 2
    update = trained(second, -1.0)
    # c_i⁺ = -3 + 2 + 1 / (2 · 0.5) = 0, which is 3 more than before
    assert update.arrays["control/w"].tolist() == [3.0, 3.0]


def test_a_task_that_is_executed_again_begins_as_it_began(tmp_path: Path) -> None:
    trained(Scaffold(state_of(), task(tmp_path, 1)), 3.0)
    state = state_of(counted=1, control=-2.0)
    first = trained(Scaffold(state, task(tmp_path, 2)), -1.0)
    again = trained(Scaffold(state, task(tmp_path, 2)), -1.0)  # a crash between writing and the receipt
    assert {name: array.tobytes() for name, array in first.arrays.items()} == {
        name: array.tobytes() for name, array in again.arrays.items()
    }
    later = trained(Scaffold(state, task(tmp_path, 3)), -1.0)  # round 2 closed without this client
    assert later.arrays["control/w"].tobytes() == first.arrays["control/w"].tobytes()


def test_files_of_two_rounds_are_kept_at_most(tmp_path: Path) -> None:
    for number in range(1, 6):
        trained(Scaffold(state_of(counted=number - 1), task(tmp_path, number)), 1.0)
        kept = [f"scaffold-{each:05d}.safetensors" for each in (number - 1, number) if each]
        assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_new_run_does_not_begin_with_the_variate_of_an_earlier_one(tmp_path: Path) -> None:
    trained(Scaffold(state_of(), task(tmp_path, 7)), 3.0)
    fresh = Scaffold(state_of(counted=0), task(tmp_path, 1))
    assert fresh.correct({"w": np.zeros(2, np.float32)})["w"].tolist() == [0, 0]
    trained(fresh, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["scaffold-00001.safetensors"]


def test_a_write_that_was_cut_leaves_the_variate_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_variate(tmp_path, 1, 0, {"w": np.ones(2, np.float32)})

    def cut(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("flcore.model.atomic_replace.AtomicReplace.commit", cut)
    with pytest.raises(OSError, match="no space"):
        write_variate(tmp_path, 2, 1, {"w": np.zeros(2, np.float32)})
    monkeypatch.undo()
    assert read_variate(tmp_path, 1, {"w": np.zeros(2, np.float32)})["w"].tolist() == [1, 1]


def test_a_site_that_lost_its_files_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"control variate of round 4, .*scaffold-00004.safetensors; there is none"):
        Scaffold(state_of(counted=4), task(tmp_path, 5))
    (tmp_path / "scaffold-00004.safetensors").write_bytes(b"no header")
    with pytest.raises(JobError, match=r"SCAFFOLD: .*scaffold-00004.safetensors.*; restore the state directory"):
        Scaffold(state_of(counted=4), task(tmp_path, 5))
    write_variate(tmp_path, 4, 0, {"w": np.zeros(3, np.float32)})
    with pytest.raises(JobError, match="is of another model"):
        Scaffold(state_of(counted=4), task(tmp_path, 5))
    with pytest.raises(JobError, match=r"start the client with a state directory \(flcore client --state DIR\)"):
        Scaffold(state_of(), task(None, 1))


def test_what_is_no_scaffold_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="has no tensor 'scaffold/counted_rounds'"):
        Scaffold({"w": np.zeros(2)}, task(tmp_path, 1))
    with pytest.raises(JobError, match="the job has 2 clients, the global model's control variates are for 3"):
        Scaffold(with_control_variates({"w": np.zeros(2)}, clients=3), task(tmp_path, 1))
    with pytest.raises(ValueError, match="client 'c' is not among the job's clients"):
        Scaffold(state_of(), task(tmp_path, 1, "c"))
    for steps, rate in ((0, 0.1), (3, 0.0), (3, float("nan"))):
        with pytest.raises(SpecError, match="expected steps >= 1 and a learning rate > 0"):
            scaffold = Scaffold(state_of(), task(tmp_path, 1))
            scaffold.update(scaffold.model, steps=steps, learning_rate=rate)
    with pytest.raises(SpecError, match="'w': the control variate is not finite; has the training diverged"):
        trained(Scaffold(state_of(), task(tmp_path, 1)), float("inf"))
    assert not list(tmp_path.iterdir())


def test_the_first_state() -> None:
    model = {"a": {"w": np.ones((2, 3), ml_dtypes.bfloat16)}, "steps": np.array(3), "v": np.ones(2)}
    state = with_control_variates(model, clients=4)
    assert {name: (array.dtype.name, array.shape) for name, array in state.items()} == {
        "a.w": ("bfloat16", (2, 3)),
        "steps": ("int64", ()),
        "v": ("float64", (2,)),
        "control/a.w": ("float32", (2, 3)),
        "control/v": ("float64", (2,)),
        COUNTED: ("int64", (4,)),
    }
    assert list(model_tensors(state)) == ["a.w", "steps", "v"] and not control_variates(state)["v"].any()
    assert model_tensors(model) == model
    with pytest.raises(SpecError, match="clients: expected a number >= 1"):
        with_control_variates(model, clients=0)
    with pytest.raises(SpecError, match="expected a model with tensors of floats"):
        with_control_variates({"n": np.array(1)}, clients=1)
    with pytest.raises(SpecError, match="'control/w': the prefix 'control/' is that of control variates"):
        with_control_variates({"control/w": np.ones(1)}, clients=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"returns": "weights"}, "needs tasks.train with returns = 'delta', got 'weights'"),
        ({"rule": "mean"}, "server.rule = \"unweighted_mean\", got 'mean'"),
        ({"wire": {"tensors": ["layer.*"]}}, "let wire.tensors select its tensors"),
    ],
)
def test_a_job_that_cannot_be_scaffold_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        flcore.run(scaffold_job(tmp_path, 1, **keys), workers=0)
