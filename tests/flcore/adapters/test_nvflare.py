"""NVFLARE's aggregator with flcore's mean, on NVFLARE's own models: `make test-adapters`."""

import inspect
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flcore

pytest.importorskip("nvflare", reason="NVFLARE is not installed (make test-adapters)")

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore.adapters.nvflare import FlcoreAggregator
from tests.flcore.adapters.each_kind import RULES

Arrays = dict[str, npt.NDArray[Any]]
STEPS = "NUM_STEPS_CURRENT_ROUND"

"""A rule of each kind: the adapter knows kinds, and no names."""


def models(count: int = 5) -> list[Arrays]:
    rng = np.random.default_rng(3)
    return [
        {"w": rng.standard_normal((30, 9)).astype(np.float32), "b": rng.standard_normal(4), "n": np.array(10 * (i + 1))}
        for i in range(count)
    ]


def result(params: Any, weight: Any = 1, client: str = "site-1", *, kind: Any = ParamsType.FULL, **metrics: Any) -> Any:
    return FLModel(
        params=params, params_type=kind, metrics=metrics or None, meta={STEPS: weight, "client_name": client}
    )


def theirs(given: list[Arrays]) -> Arrays:
    helper = WeightedAggregationHelper()
    for weight, params in enumerate(given, 1):
        helper.add(params, weight, f"site-{weight}", 0)
    return dict(helper.get_result())


class Lazy:
    """A tensor on disk; how many are in memory is counted."""

    alive = most = 0

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values

    def materialize(self) -> Any:
        class Loaded(np.ndarray):
            def __del__(self) -> None:
                Lazy.alive -= 1

        Lazy.alive += 1
        Lazy.most = max(Lazy.most, Lazy.alive)
        loaded = np.ndarray.__new__(Loaded, self._values.shape, self._values.dtype)
        loaded[...] = self._values
        return loaded


def metrics(weight: int) -> dict[str, Any]:
    odd = {"nan": float("nan"), "large": 10**400} if weight == 2 else {"nan": 1.0, "large": 1}
    return {"loss": weight, "text": "x", "flag": True, **odd}


@pytest.mark.parametrize("group", [1, 4, 9])
@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_the_mean_is_nvflares_to_rounding_and_integers_stay_integers(accumulate: str, group: int) -> None:
    aggregator, expected = FlcoreAggregator(accumulate=accumulate, group=group), theirs(models())
    for _ in range(2):
        for weight, params in enumerate(models(), 1):
            aggregator.accept_model(result(params, weight, f"site-{weight}", **metrics(weight)))
        found = aggregator.aggregate_model()
        assert found.params_type == ParamsType.FULL and found.metrics == {"loss": pytest.approx(55 / 15), "flag": 1.0}
        assert found.params["n"] == 37 and found.params["n"].dtype == np.int64
        for name in ("w", "b"):
            assert found.params[name].dtype == models()[0][name].dtype
            assert np.allclose(found.params[name], expected[name], rtol=1e-6, atol=1e-7)


def test_exact_means_are_those_of_aggregate_in_any_order() -> None:
    given = list(enumerate(models(), 1))
    expected = flcore.aggregate([(params, weight) for weight, params in given])
    for order, group in ((given, 1), (given[::-1], 2), (given[2:] + given[:2], 4)):
        aggregator = FlcoreAggregator(group=group)
        for weight, params in order:
            aggregator.accept_model(result(params, weight, f"site-{weight}"))
        found = aggregator.aggregate_model().params
        assert {name: values.tobytes() for name, values in found.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("kind", RULES)
def test_any_rule_gives_what_aggregate_gives(kind: str, is_lazy: bool) -> None:
    given, aggregator = list(enumerate(models(9), 1)), FlcoreAggregator(rule=RULES[kind], group=2)
    for order in (given, given[:5][::-1], given[2:8]):
        expected = flcore.aggregate([(params, weight) for weight, params in order], rule=RULES[kind])
        for weight, params in order:
            tensors = {name: Lazy(values) for name, values in params.items()} if is_lazy else params
            aggregator.accept_model(result(tensors, weight, f"site-{weight}", loss=1.0))
        found = aggregator.aggregate_model()
        assert {name: values.tobytes() for name, values in found.params.items()} == {
            name: values.tobytes() for name, values in expected.items()
        }
        assert found.metrics == {"loss": 1.0} and found.params_type == ParamsType.FULL


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("place", [0, 2, 6])
def test_a_result_with_a_nan_is_left_out_by_name_under_any_rule(
    kind: str, place: int, is_lazy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = models(6), models(1)[0]
    bad["n"] = np.array(2**60)
    bad["b"][3] = np.nan
    expected = flcore.aggregate([(params, weight) for weight, params in enumerate(good, 1)], rule=RULES[kind])
    given = [(f"site-{weight}", weight, params) for weight, params in enumerate(good, 1)]
    given.insert(place, ("bad", 7, bad))
    aggregator, is_checked_at_once = FlcoreAggregator(rule=RULES[kind]), kind.startswith("a sum") or place == 0
    for client, weight, params in given:
        tensors = {name: Lazy(values) for name, values in params.items()} if is_lazy else params
        is_refused = client == "bad" and is_checked_at_once
        with pytest.raises(flcore.NonFinite, match="client 'bad'") if is_refused else nullcontext():
            aggregator.accept_model(result(tensors, weight, client, loss=1.0 if client == "bad" else 2.0))
    found = aggregator.aggregate_model()
    assert "refused: client 'bad', tensor 'b': element 3 is nan" in caplog.text
    assert all(found.params[name].tobytes() == values.tobytes() for name, values in expected.items())
    assert found.metrics == {"loss": 2.0}


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_rule_that_needs_more_results_says_how_many_and_the_next_round_goes_on(is_lazy: bool) -> None:
    def accept(count: int, *, nan: bool = False) -> None:
        for weight, params in enumerate(models(count), 1):
            params["b"][0] = np.nan if nan and weight == count else params["b"][0]
            tensors = {name: Lazy(values) for name, values in params.items()} if is_lazy else params
            aggregator.accept_model(result(tensors, weight, f"site-{weight}"))

    aggregator = FlcoreAggregator(rule="trimmed_mean(f=2)")
    accept(4)
    with pytest.raises(flcore.AggregationError, match=r"rule 'trimmed_mean\(f=2\)' needs at least 5 updates, got 4$"):
        aggregator.aggregate_model()
    accept(5, nan=True)
    words = "needs at least 5 updates, got 4; the first refusal: client 'site-5', tensor 'b': element 0 is nan"
    with pytest.raises(flcore.AggregationError, match=words):
        aggregator.aggregate_model()
    accept(5)
    assert aggregator.aggregate_model().params["n"] == 40, "40 has what the cuts leave of the weights 1 to 5"


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_client_has_one_result_in_a_round_of_a_rule_that_counts_clients(is_lazy: bool) -> None:
    def accept(value: float, client: str) -> None:
        tensor = np.full(2, value)
        aggregator.accept_model(result({"w": Lazy(tensor) if is_lazy else tensor}, 1, client))

    aggregator = FlcoreAggregator(rule="median")
    for value, client in ((1.0, "a"), (2.0, "b"), (9.0, "bad")):
        accept(value, client)
    with pytest.raises(flcore.UpdateError, match="client 'bad': it has an update in this round already"):
        accept(9.0, "bad")
    assert aggregator.aggregate_model().params["w"].tolist() == [2.0, 2.0]


def test_clients_without_a_number_of_steps_count_alike_where_weights_are_turned_off() -> None:
    def combined(**settings: Any) -> float:
        aggregator = FlcoreAggregator(**settings)
        for client, value in (("a", 1.0), ("b", 2.0), ("c", 6.0)):
            aggregator.accept_model(
                FLModel(params={"w": np.full(2, value)}, params_type=ParamsType.FULL, meta={"client_name": client})
            )
        return float(aggregator.aggregate_model().params["w"][0])

    assert combined(weighted=False) == combined(rule="unweighted_mean") == 3.0
    assert combined(rule="median", weighted=False) == 2.0
    capped = FlcoreAggregator(rule=flcore.Sum("capped", lambda weight: min(weight, 1.0)))
    for client, value, weight in (("a", 1.0, 0.5), ("b", 4.0, 9)):
        capped.accept_model(result({"w": np.full(2, value)}, weight, client))
    assert capped.aggregate_model().params["w"].tolist() == [3.0, 3.0], "weights above 1 are alike, and count below it"
    with pytest.raises(flcore.WeightError, match="weighted=False needs none"):
        combined(rule="median")


@pytest.mark.parametrize("rule", RULES.values())
def test_a_round_whose_weights_are_all_zero_has_no_result_under_any_rule(rule: Any) -> None:
    aggregator = FlcoreAggregator(rule=rule)
    for number in range(5):
        aggregator.accept_model(result({"w": np.ones(2)}, 0, f"site-{number}", loss=1.0))
    with pytest.raises(flcore.WeightError, match="the weights of all 5 updates are zero"):
        aggregator.aggregate_model()


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_result_that_cannot_be_counted_leaves_no_trace(is_lazy: bool) -> None:
    def made(params: Arrays) -> dict[str, Any]:
        return {name: Lazy(values) for name, values in params.items()} if is_lazy else params

    good, nan = models(1)[0], models(1)[0]
    nan["b"][3] = np.inf
    bad = {
        "client 'bad'.*tensor 'n'": result(made({"w": good["w"], "b": good["b"]}), 1, "bad"),
        "client 'bad'.*tensor 'x'": result(made({**good, "x": good["b"]}), 1, "bad"),
        r"client 'bad', tensor 'w': expected float32 of shape \(30, 9\)": result(
            made({**good, "w": good["w"].T}), 1, "bad"
        ),
        "client 'bad', tensor 'b': element 3 is inf": result(made(nan), 1, "bad"),
        "client 'bad': a weight is a finite number >= 0.* not -1": result(made(good), -1, "bad"),
        "client 'bad': a weight is a finite number >= 0": result(made(good), 10**400, "bad"),
        "client 'bad': a weight is a finite number >= 0.* not True": result(made(good), True, "bad"),
        "client 'bad': a weight is a finite number >= 0.* not 'many'": result(made(good), "many", "bad"),
        "client 'bad': its parameters are ParamsType.DIFF, others' ParamsType.FULL": result(
            made(good), 1, "bad", kind=ParamsType.DIFF
        ),
        "client 'bad': its result has no parameters": FLModel(metrics={"loss": 1}, meta={"client_name": "bad"}),
        "client 'bad': the meta of its result lacks \"NUM_STEPS_CURRENT_ROUND\"": FLModel(
            params=made(good), params_type=ParamsType.FULL, meta={"client_name": "bad"}
        ),
    }
    aggregator = FlcoreAggregator()
    for weight, params in enumerate(models(), 1):
        aggregator.accept_model(result(made(params), weight))
        for words, refused in bad.items():
            if not refused.params and "no parameters" in words:
                refused.params_type = ParamsType.FULL
            with pytest.raises(flcore.UpdateError, match=words):
                aggregator.accept_model(refused)
    found, expected = aggregator.aggregate_model().params, theirs(models())
    assert all(np.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7) for name in ("w", "b"))


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_a_held_result_that_turns_out_to_be_unsound_is_left_out(
    accumulate: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = models(), models(1)[0]
    bad["w"][2, 2] = np.nan
    expected = theirs(good)
    for place in range(6):
        given = [(f"site-{weight}", weight, params) for weight, params in enumerate(good, 1)]
        given.insert(place, ("bad", 7, bad))
        for group in (2, 3, 6, 7):
            aggregator = FlcoreAggregator(accumulate=accumulate, group=group)
            caplog.clear()
            refused = []
            for client, weight, params in given:
                try:
                    aggregator.accept_model(result(params, weight, client, loss=float(weight)))
                except flcore.NonFinite as error:
                    refused.append(str(error))
            found = aggregator.aggregate_model()
            words = "client 'bad', tensor 'w': element 20 is nan"
            assert words in caplog.text or any(words in each for each in refused)
            assert found.metrics == {"loss": pytest.approx(55 / 15)}
            assert all(np.allclose(found.params[name], expected[name], rtol=1e-6, atol=1e-7) for name in ("w", "b"))


def test_differences_stay_differences_and_rounds_may_change() -> None:
    aggregator = FlcoreAggregator()
    for kind in (ParamsType.DIFF, ParamsType.FULL):
        aggregator.accept_model(result({"w": np.ones(2)}, kind=kind))
        assert aggregator.aggregate_model().params_type == kind
    aggregator.accept_model(result({"w": np.ones(2)}))
    aggregator.reset_stats()
    with pytest.raises(flcore.QuorumError, match="no update was accepted"):
        aggregator.aggregate_model()
    aggregator.accept_model(result({"w": np.ones(2)}))
    with pytest.raises(flcore.TensorMismatch, match="tensor 'w': it is missing"):
        aggregator.accept_model(result({"v": np.ones(2)}))


def test_lazy_references_are_materialized_one_tensor_at_a_time() -> None:
    Lazy.alive = Lazy.most = 0
    aggregator, expected = FlcoreAggregator(group=4), theirs(models())
    for weight, params in enumerate(models(), 1):
        aggregator.accept_model(result({name: Lazy(values) for name, values in params.items()}, weight))
    found = aggregator.aggregate_model().params
    assert Lazy.most == 1 and Lazy.alive == 0
    assert all(np.allclose(found[name], expected[name], rtol=1e-6, atol=1e-7) for name in ("w", "b"))


def test_a_first_result_that_is_refused_says_nothing_of_the_model_and_a_torn_one_ends_the_round() -> None:
    class Gone(Lazy):
        left = 0

        def materialize(self) -> Any:
            Gone.left -= 1
            if Gone.left < 0:
                raise OSError("the file is gone")
            return super().materialize()

    def lazy(*names: str, value: float = 1.0) -> dict[str, Any]:
        return {name: Lazy(np.full(3, value)) for name in names}

    aggregator = FlcoreAggregator()
    with pytest.raises(flcore.NonFinite):
        aggregator.accept_model(result(lazy("w") | lazy("v", value=np.nan), client="bad"))
    aggregator.accept_model(result(lazy("x", "y")))
    with pytest.raises(flcore.UpdateError, match="client 'site-2': its tensors are in memory, others' on disk"):
        aggregator.accept_model(result({"x": np.ones(3), "y": np.ones(3)}, client="site-2"))
    for left in (0, 1):  # it cannot be looked at, or not be checked: nothing has changed
        Gone.left = left
        with pytest.raises(flcore.UpdateError, match=r"client 'site-3', tensor 'y': it cannot be read back: .* gone"):
            aggregator.accept_model(result({"x": Lazy(np.ones(3)), "y": Gone(np.ones(3))}, client="site-3"))
    Gone.left = 2  # it can be checked, and not be folded
    with pytest.raises(flcore.UpdateError, match=r"client 'site-3', tensor 'y': it cannot be read back: .* gone"):
        aggregator.accept_model(result({"x": Lazy(np.ones(3)), "y": Gone(np.ones(3))}, client="site-3"))
    with pytest.raises(flcore.AggregationError, match="this round has no result"):
        aggregator.accept_model(result(lazy("x", "y"), client="site-4"))
    with pytest.raises(flcore.AggregationError, match="this round has no result"):
        aggregator.aggregate_model()
    aggregator.reset_stats()
    aggregator.accept_model(result(lazy("x", "y", value=5.0)))
    assert aggregator.aggregate_model().params["y"].tolist() == [5.0] * 3


def test_rules_weights_of_clients_and_excluded_tensors() -> None:
    given = [({"w": np.full(2, value), "bn.count": np.ones(1)}, weight) for value, weight in ((0.0, 1), (3.0, 2))]

    def mean(**arguments: Any) -> Any:
        aggregator = FlcoreAggregator(**arguments)
        for site, (params, weight) in enumerate(given):
            aggregator.accept_model(result(params, weight, f"site-{site}"))
        return aggregator.aggregate_model().params

    assert mean()["w"].tolist() == [2.0, 2.0]
    assert mean(rule="unweighted_mean")["w"].tolist() == [1.5, 1.5]
    assert mean(aggregation_weights={"site-0": 4})["w"].tolist() == [1.0, 1.0]
    given = [(params, np.int64(weight)) for params, weight in given]  # type: ignore[misc]
    assert mean(aggregation_weights={"site-0": 4})["w"].tolist() == [1.0, 1.0]
    assert list(mean(exclude_vars=r"^bn\.")) == ["w"]
    with pytest.raises(flcore.OutOfBounds, match="client 'site-1', tensor 'w': element 0 has magnitude 3"):
        mean(max_abs=2.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": "fp32"}, "accumulate 'fp32' does not exist"),
        ({"rule": "medain"}, "rule 'medain' does not exist; .* did you mean 'median'"),
        ({"rule": "trimmed_mean"}, "rule 'trimmed_mean': missing a required argument: 'f'"),
        ({"group": 0}, "group: expected a whole number of at least 1, got 0"),
        ({"max_abs": -1}, "max_abs: expected a number above 0, got -1"),
        ({"exclude_vars": "("}, r"exclude_vars: '\(' is no regular expression: missing \)"),
        (
            {"aggregation_weights": {"site-1": -1}},
            "aggregation_weights: 'site-1' has -1, expected a finite number >= 0",
        ),
    ],
)
def test_settings_that_no_round_could_have_are_refused_at_once(settings: Any, words: str) -> None:
    with pytest.raises(flcore.JobError, match=words):
        FlcoreAggregator(**settings)


def test_a_refused_result_says_nothing_of_what_others_must_be() -> None:
    good, lazy = {"w": np.ones(2)}, {"w": Lazy(np.ones(2))}
    aggregator = FlcoreAggregator(group=3)
    with pytest.raises(flcore.UpdateError):
        aggregator.accept_model(result({"w": np.array(["x"])}))
    with pytest.raises(flcore.NonFinite):
        aggregator.accept_model(result({"w": np.array([np.nan, 1])}, kind=ParamsType.DIFF))
    aggregator.accept_model(result(lazy))
    assert aggregator.aggregate_model().params["w"].tolist() == [1.0, 1.0]
    for client in ("a", "b", "b"):
        aggregator.accept_model(result(good, 1, client, loss=1.0 if client == "a" else 4.0))
    found = aggregator.aggregate_model()
    assert found.params["w"].tolist() == [1.0, 1.0] and found.metrics == {"loss": 3.0}


def test_a_round_of_nobody_says_why() -> None:
    aggregator = FlcoreAggregator(group=2)
    for client in ("site-1", "site-2"):
        with pytest.raises(flcore.NonFinite):
            aggregator.accept_model(result({"w": np.array([np.nan])}, 1, client))
    with pytest.raises(flcore.QuorumError, match="; the first refusal: client 'site-1', tensor 'w': element 0"):
        aggregator.aggregate_model()


def context() -> FLContext:
    made = FLContext()
    made.set_prop(FLContextKey.CURRENT_JOB_ID, "job", private=True)
    return made


def shareable(params: Any, client: str, kind: str = DataKind.WEIGHTS, **meta: Any) -> Shareable:
    made = DXO(kind, data=params, meta=meta).to_shareable()
    peer = FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, client, private=False, sticky=False)
    made.set_peer_props(peer.get_all_public_props())
    return made


@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
def test_the_classic_workflow_accepts_refuses_aggregates_and_resets(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator, ctx = FlcoreAggregator(), context()
    aggregator.reset(ctx)
    for weight, params in enumerate(models(), 1):
        assert aggregator.accept(shareable(params, f"site-{weight}", kind, **{STEPS: weight}), ctx)
    assert not aggregator.accept(shareable({"w": np.ones(2)}, "site-9", kind, **{STEPS: 1}), ctx)
    assert "refused: client 'site-9'" in caplog.text
    assert not aggregator.accept(Shareable(), ctx)
    found = aggregator.aggregate(ctx)["DXO"]
    assert found["kind"] == kind
    expected = theirs(models())
    assert np.allclose(found["data"]["w"], expected["w"], rtol=1e-6, atol=1e-7)


def test_constructor_arguments_are_attributes_of_plain_values() -> None:
    aggregator = FlcoreAggregator()
    for name, parameter in inspect.signature(FlcoreAggregator).parameters.items():
        assert getattr(aggregator, name) == parameter.default
        assert isinstance(parameter.default, str | int | float | None)


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (make test-adapters)")
def test_tensors_come_back_as_tensors() -> None:
    import torch

    aggregator = FlcoreAggregator()
    for value in (1.0, 3.0):
        tied = torch.full((2, 2), value, dtype=torch.bfloat16)
        aggregator.accept_model(result({"in": tied, "out": tied, "n": torch.tensor(int(value))}))
    found = aggregator.aggregate_model().params
    assert found["in"] is found["out"] and found["in"].dtype is torch.bfloat16 and found["n"] == 2
    assert found["in"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
