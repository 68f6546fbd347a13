"""Quadratics with a known optimum: client i minimises ½ Σ a_i (w - b_i)², weighted by its number of examples.

The clients of a job, one class per algorithm, and the oracles: the same algorithms in NumPy, written from the papers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flcore
from flcore.heterogeneity import ProximalTerm, Scaffold, accumulation_norm, nova_update, with_control_variates
from flcore.job.parsing import parse_contract

Vector = npt.NDArray[np.float64]

CLIENTS, DIMENSIONS = 6, 4
_RNG = np.random.default_rng(0)
CURVATURES = _RNG.uniform(0.2, 3.0, (CLIENTS, DIMENSIONS))
CENTRES = _RNG.normal(0, 2, (CLIENTS, DIMENSIONS))
EXAMPLES = np.array([10, 20, 30, 40, 50, 60])
STEPS = np.array([2, 40, 4, 30, 8, 20])
START = np.full(DIMENSIONS, 5.0)


def optimum(weights: npt.ArrayLike) -> Vector:
    """The minimum of the weighted mean of all clients' functions."""
    shares = np.asarray(weights, np.float64)[:, None]
    found: Vector = (shares * CURVATURES * CENTRES).sum(0) / (shares * CURVATURES).sum(0)
    return found


def gradient(client: int, w: Vector) -> Vector:
    found: Vector = CURVATURES[client] * (w - CENTRES[client])
    return found


def initial_model(seed: int) -> dict[str, Any]:
    return {"layer.w": START.copy()}


def initial_state(seed: int) -> dict[str, Any]:
    return with_control_variates(initial_model(seed), clients=CLIENTS)


class AveragingClient:
    """FedAvg, and FedProx with the hyperparameter mu."""

    def __init__(self, site: flcore.Site) -> None:
        self.client = site.index

    def steps(self, task: flcore.Task) -> int:
        steps = task.hyperparameters.get("steps")
        return int(STEPS[self.client]) if steps is None else int(steps)

    def walk(self, model: flcore.Arrays, task: flcore.Task, term: ProximalTerm) -> dict[str, Any]:
        weights = {"layer.w": model["layer.w"].copy()}
        velocity = np.zeros(DIMENSIONS)
        for _ in range(self.steps(task)):
            gradients = term.add_to({"layer.w": gradient(self.client, weights["layer.w"])}, weights)
            velocity = task.hyperparameters.get("momentum", 0.0) * velocity + gradients["layer.w"]
            weights["layer.w"] -= task.hyperparameters["learning_rate"] * velocity
        return weights

    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        weights = self.walk(model, task, ProximalTerm(model, mu=task.hyperparameters.get("mu", 0.0)))
        drift = float(np.linalg.norm(weights["layer.w"] - model["layer.w"]))
        delta = {"layer.w": weights["layer.w"] - model["layer.w"]}
        return flcore.Update(delta, weight=int(EXAMPLES[self.client]), metrics={"drift": drift})


class NovaClient(AveragingClient):
    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        mu, rate = task.hyperparameters.get("mu", 0.0), task.hyperparameters["learning_rate"]
        weights = self.walk(model, task, ProximalTerm(model, mu=mu))
        momentum = task.hyperparameters.get("momentum", 0.0)
        norm = accumulation_norm(self.steps(task), momentum=momentum, proximal=rate * mu)
        return nova_update(model, weights, examples=int(EXAMPLES[self.client]), norm=norm)


class ScaffoldClient(AveragingClient):
    def train(self, model: flcore.Arrays, task: flcore.Task) -> flcore.Update:
        scaffold, rate, steps = Scaffold(model, task), task.hyperparameters["learning_rate"], self.steps(task)
        w = scaffold.model["layer.w"].copy()
        for _ in range(steps):
            w -= rate * scaffold.correct({"layer": {"w": gradient(self.client, w)}})["layer"]["w"]
        return scaffold.update({"layer": {"w": w}}, steps=steps, learning_rate=rate)


def job_of(
    executor: str, directory: Path, *, rounds: int, hyperparameters: Mapping[str, Any], **keys: Any
) -> flcore.Job:
    """Return a job of these quadratics; `keys` are further keys of the tables server and wire."""
    wire = keys.pop("wire", {})
    returns = keys.pop("returns", "delta")
    server = {
        "model": f"{__name__}:{'initial_state' if executor == 'ScaffoldClient' else 'initial_model'}",
        "rounds": rounds,
        "quorum": 1,
    }
    content = {
        "name": "quadratics",
        "clients": [f"client-{number}" for number in range(1, CLIENTS + 1)],
        "server": server | keys,
        "client": {"executor": f"{__name__}:{executor}"},
        "tasks": {"train": {"returns": returns, "hyperparameters": dict(hyperparameters)}},
        "wire": wire,
    }
    return flcore.Job(parse_contract(content, "the test's contract"), directory)


def model_of(outcome: flcore.Outcome) -> Vector:
    found: Vector = np.array(outcome.model.arrays()["layer.w"])
    return found


def scaffold_oracle(sampled: Sequence[Sequence[int]], steps: int, rate: float) -> tuple[Vector, Vector, Vector]:
    """Algorithm 1 of arXiv:1910.06378 with option II: the model, c, and all c_i after the rounds."""
    x, c, own = START.copy(), np.zeros(DIMENSIONS), np.zeros((CLIENTS, DIMENSIONS))
    for clients in sampled:
        moved, changed = [], []
        for client in clients:
            y = x.copy()
            for _ in range(steps):
                y = y - rate * (gradient(client, y) - own[client] + c)
            new = own[client] - c + (x - y) / (steps * rate)
            moved.append(y - x)
            changed.append(new - own[client])
            own[client] = new
        x = x + np.mean(moved, axis=0)
        c = c + len(clients) / CLIENTS * np.mean(changed, axis=0)
    return x, c, own


def nova_oracle(rounds: int, rate: float, momentum: float = 0.0, mu: float = 0.0) -> Vector:
    """FedNova of arXiv:2007.07481: x⁺ = x - τ_eff Σ p_i η d_i with d_i = G_i a_i / ‖a_i‖₁, a_i written out."""
    x, shares = START.copy(), EXAMPLES / EXAMPLES.sum()
    for _ in range(rounds):
        norms, directions = [], []
        for client in range(CLIENTS):
            count = int(STEPS[client])
            y, velocity, gradients = x.copy(), np.zeros(DIMENSIONS), []
            for _ in range(count):
                gradients.append(gradient(client, y))
                velocity = momentum * velocity + gradients[-1] + mu * (y - x)
                y = y - rate * velocity
            if momentum:  # a = [1 - ρ^τ, 1 - ρ^(τ-1), ..., 1 - ρ] / (1 - ρ)
                a = np.array([(1 - momentum ** (count - k)) / (1 - momentum) for k in range(count)])
            else:  # a = [(1 - ημ)^(τ-1), ..., (1 - ημ), 1]; ones for SGD
                a = np.array([(1 - rate * mu) ** (count - 1 - k) for k in range(count)])
            norms.append(a.sum())
            directions.append((a[:, None] * np.array(gradients)).sum(axis=0) / a.sum())
        x = x - shares @ np.array(norms) * rate * (shares[:, None] * np.array(directions)).sum(axis=0)
    return x
