"""Server optimizers behind every kind of rule, in an `Aggregator`: the formulas, states, dtypes and what is refused."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from flcore import Aggregator, Arrays, JobError, Model, ModelSpec, StepOverflow, aggregate, chain
from flcore.aggregation.incremental import IncrementalAggregator, require_settings
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage
from flcore.rules.kinds import step_of
from flcore.rules.named import resolve_rule
from flcore.rules.server_optimizers import fed_adagrad, fed_adam, fed_avg_m, fed_yogi, server_lr
from tests.reference import bits_of

Real = npt.NDArray[np.float64]
STEPS = 4
NAMES = (
    "server_lr(lr=0.5)",
    "fed_avg_m(momentum=0.5)",
    "fed_avg_m(lr=0.7, nesterov=true)",
    "fed_adagrad(lr=0.1)",
    "fed_yogi(lr=0.1)",
    "fed_adam(lr=0.1)",
    "fed_adam(lr=0.1, bias_correction=true)",
)


def oracle(name: str, x: Real, change: Real, state: dict[str, Any]) -> Any:
    """The equations of the papers, in float64."""
    m, v, t = state.setdefault("m", np.zeros_like(x)), state.get("v"), state.get("t", 0) + 1
    state["t"] = t
    kind = name.partition("(")[0]
    if kind == "server_lr":
        return x + 0.5 * change
    if kind == "fed_avg_m":
        beta, lr, is_nesterov = (0.9, 0.7, True) if "nesterov" in name else (0.5, 1.0, False)
        state["m"] = m = beta * m + change
        return x + lr * (change + beta * m if is_nesterov else m)
    is_corrected = "bias" in name
    v = np.full_like(x, 0.0 if is_corrected else 1e-6) if v is None else v
    beta1 = 0.0 if kind == "fed_adagrad" else 0.9
    m, square = beta1 * m + (1 - beta1) * change, change**2
    v = {
        "fed_adagrad": v + square,
        "fed_yogi": v - 0.01 * square * np.sign(v - square),
        "fed_adam": 0.99 * v + 0.01 * square,
    }[kind]
    state |= {"m": m, "v": v}
    first, second = (1 - 0.9**t, 1 - 0.99**t) if is_corrected else (1.0, 1.0)
    return x + 0.1 * (m / first) / (np.sqrt(v / second) + 1e-3)


def updates(model: Arrays, step: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(step)
    return [
        {name: (array + rng.standard_normal(array.shape)).astype(array.dtype) for name, array in model.items()}
        for _ in range(3)
    ]


def start(dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(9)
    return {"w": rng.standard_normal((30, 20)).astype(dtype), "b": rng.standard_normal(7).astype(dtype)}


def follow(rule: str, model: Arrays, plan: str = "batch", storage: Storage | None = None, delta: bool = False) -> Any:
    """Aggregate `STEPS` rounds, each with the state of the one before; return the last model and state."""
    state = None
    for step in range(STEPS):
        sent = Model.of(model)
        aggregator = Aggregator(
            sent.spec,
            rule=rule,
            plan=plan,
            storage=storage,
            optimizer_state=state,
            base=sent if delta else None,
            reference=None if delta else sent,
        )
        for number, arrays in enumerate(updates(model, step)):
            if delta:
                arrays = {name: arrays[name] - model[name] for name in arrays}
            with aggregator.update(client=f"{number}", weight=1.0) as update:
                update.write_all(arrays)
        model, state = aggregator.finish().arrays(), aggregator.optimizer_state
    return model, state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_the_model_follows_the_equation(name: str, rule: str) -> None:
    found, state = follow(f"{rule} + {name}", start())
    assert int(state.arrays()["steps"]) == STEPS
    model: dict[str, Any] = {key: array.astype(np.float64) for key, array in start().items()}
    states: dict[str, dict[str, Any]] = {key: {} for key in model}
    sent: Arrays = start()
    for step in range(STEPS):
        given = [{key: array.astype(np.float64) for key, array in each.items()} for each in updates(sent, step)]
        for key in model:
            stack = np.stack([each[key] for each in given])
            result = stack.mean(axis=0) if rule == "mean" else np.median(stack, axis=0)
            model[key] = oracle(name, model[key], result - model[key], states[key])
        sent = {key: array.astype(np.float32) for key, array in model.items()}
        model = {key: array.astype(np.float64) for key, array in sent.items()}
    for key in model:
        assert np.allclose(found[key], model[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean + fed_adam(lr=0.1)", "unweighted_mean + fed_avg_m"])
def test_both_plans_memory_and_disk_give_the_same_bits(rule: str, tmp_path: Any) -> None:
    wanted, state = follow(rule, start())
    for plan, storage in (
        ("streaming", Storage("streaming")),
        ("batch", Storage("batch", Staging(0, tmp_path / "staging"), read_chunks=1)),
    ):
        found, other = follow(rule, start(), plan, storage)
        assert bits_of(Model.of(found)) == bits_of(Model.of(wanted)) and bits_of(other) == bits_of(state)


def test_differences_give_what_whole_models_give() -> None:
    whole, _ = follow("mean + fed_yogi(lr=0.1)", start(np.float64))
    found, _ = follow("mean + fed_yogi(lr=0.1)", start(np.float64), delta=True)
    assert all(np.allclose(found[name], whole[name], rtol=1e-12, atol=1e-12) for name in whole)


def test_each_float_has_its_state_and_integers_are_what_the_rule_gives() -> None:
    model = {
        "half": np.ones(5, ml_dtypes.bfloat16),
        "n": np.array([3, 5]),
        "double": np.ones((2, 2)),
        "single": np.zeros(300, np.float32),
        "flag": np.array([True]),
    }
    aggregator = Aggregator(ModelSpec.of(model), rule="mean + fed_adam(lr=1.0)", reference=Model.of(model))
    moved = {**model, "n": np.array([5, 8]), "single": np.ones(300, np.float32)}
    for number in range(2):
        with aggregator.update(client=f"{number}", weight=1.0) as update:
            update.write_all(moved)
    found, state = aggregator.finish().arrays(), aggregator.optimizer_state
    assert found["n"].tolist() == [5, 8] and found["flag"].tolist() == [True] and (found["half"] == 1).all()
    first = 0.1 / (np.sqrt(0.01 + 1e-6) + 1e-3)
    assert np.ptp(found["single"]) == 0 and found["single"][0] == pytest.approx(first, 1e-3)
    assert state is not None
    dtypes = {tensor.name: tensor.dtype for tensor in state.spec.tensors}
    assert dtypes == {
        "steps": "int64",
        **{f"{slot}.{name}": "float32" for slot in "mv" for name in ("half", "single")},
        **{f"{slot}.double": "float64" for slot in "mv"},
    }


def test_a_step_that_overflows_changes_neither_model_nor_state() -> None:
    model: Arrays = {"w": np.ones(3, np.float32)}
    aggregator = Aggregator(ModelSpec.of(model), rule="mean + fed_avg_m(lr=1e30)", reference=Model.of(model))
    with aggregator.update(client="a", weight=1.0) as update:
        update.write_all({"w": np.array([1, 1e10, 1], np.float32)})
    with pytest.raises(StepOverflow, match=r"fed_avg_m.* in step 1: tensor 'w': element 1 does not fit into float32"):
        aggregator.finish()
    assert aggregator.optimizer_state is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("mean + fed_adam", "missing a required argument: 'lr'"),
        ("mean + fed_adam(lr=0)", "fed_adam: lr is a number above 0, got 0"),
        ("mean + fed_adam(lr=0.1, beta2=1)", "beta2 is a number of at least 0 and below 1, got 1"),
        ("mean + fed_adam(lr=0.1, tau=0)", "tau is a number above 0, got 0"),
        ("mean + fed_avg_m(nesterov=1)", "nesterov is true or false, got 1"),
        ("fed_adam(lr=0.1)", "has no rule: add one"),
        ("fed_adam(lr=0.1) + mean", "is a server optimizer, and only the last part may be one"),
        ("mean + fed_adam(lr=0.1) + fed_avg_m", "is a server optimizer, and only the last part may be one"),
    ],
)
def test_wrong_chains_are_refused(rule: str, words: str) -> None:
    with pytest.raises(JobError, match=words):
        resolve_rule(rule)


def test_entry_points_without_a_state_or_a_model_refuse_optimizers() -> None:
    model: Arrays = {"w": np.ones(3, np.float32)}
    with pytest.raises(JobError, match=r"fed_avg_m\(lr=1\) keeps a state between rounds: use it in a job"):
        aggregate([(model, 1.0)], rule="mean + fed_avg_m")
    with pytest.raises(JobError, match="give reference=, the model that clients began with, for fed_avg_m"):
        Aggregator(ModelSpec.of(model), rule="mean + fed_avg_m")
    other = Model.of({"w": np.ones(4, np.float32)})
    aggregator = Aggregator(
        ModelSpec.of(model), rule="mean + fed_avg_m", reference=Model.of(model), optimizer_state=other
    )
    with aggregator.update(client="a", weight=1.0) as update:
        update.write_all(model)
    with pytest.raises(JobError, match="the optimizer's state is that of another model or of another optimizer"):
        aggregator.finish()


def test_an_adapter_refuses_optimizers_and_clips_with_the_model_that_was_sent() -> None:
    with pytest.raises(JobError, match="not in an adapter, whose framework has server optimizers of its own"):
        require_settings("mean + fed_avg_m", "exact", None, 1e30)
    running, sent = IncrementalAggregator(rule="clipped_mean(max_norm=1.0)"), {"w": np.full(4, 10.0, np.float32)}
    for _ in range(2):
        running.begin_round(sent)
        running.add({"w": np.full(4, 11.0, np.float32)}, 1.0, "a")  # its norm is 2
        running.add({"w": np.full(4, 10.0, np.float32)}, 1.0, "b")
        assert running.finish()["w"].tolist() == [10.25] * 4


def test_names_leave_defaults_out_and_are_read_again() -> None:
    for step in (
        server_lr(0.5),
        fed_avg_m(),
        fed_avg_m(2.0, momentum=0.5, nesterov=True),
        fed_adagrad(0.1, beta1=0.9),
        fed_yogi(0.1, beta1=0.5, tau=1e-4),
        fed_adam(0.1, beta2=0.999, bias_correction=True),
    ):
        again = step_of(resolve_rule(chain(resolve_rule("mean"), step).name))
        assert again is not None and again.name == step.name and again.optimizer(3) == step.optimizer(3)
        assert again.start == step.start
    assert fed_adam(0.1).name == "fed_adam(lr=0.1)" and fed_adagrad(0.1).name == "fed_adagrad(lr=0.1)"
