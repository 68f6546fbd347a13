"""NVIDIA FLARE: its mean, and its FedAvg with its own mean and with flcore's adapter."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from flcore_bench.timing import Work
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore.adapters.nvflare import FlcoreAggregator
from flcore_bench_peers.contest import Contender, Models
from flcore_bench_peers.drop_in import DropIn

PACKAGE = "nvflare"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:  # noqa: ARG001 - it has no threads
    """Return a round of `WeightedAggregationHelper`: add every client's arrays, then get the result."""
    helper = WeightedAggregationHelper()

    def work() -> dict[str, Any]:
        for client, (model, weight) in enumerate(zip(models, weights, strict=True)):
            helper.add(model, weight, f"site-{client}", 0)
        result: dict[str, Any] = helper.get_result()
        return result

    first = next(iter(models[0]))
    return [
        Contender("NVFLARE WeightedAggregationHelper", "NVFLARE", work, lambda result: result[first], {"flat": 4.5})
    ]


ONE_BY_ONE, IN_GROUPS = "one by one", "groups of 4"


def drop_ins(models: Models, weights: list[float]) -> list[DropIn]:
    """Return FedAvg on NumPy arrays and, where PyTorch is installed, on its tensors."""
    numpy_goals = {
        f"flcore float32, {ONE_BY_ONE}": 2.2,
        f"flcore float32, {IN_GROUPS}": 4.0,
        f"flcore exact, {ONE_BY_ONE}": 1.0,
        f"flcore exact, {IN_GROUPS}": 1.0,
    }
    tensor_goals = {f"flcore float32, {ONE_BY_ONE}": 1.0, f"flcore float32, {IN_GROUPS}": 1.5}
    found = [_drop_in("NumPy", models, weights, lambda result: result["weight"], numpy_goals)]
    if find_spec("torch"):
        import torch

        given = [{name: torch.from_numpy(array) for name, array in model.items()} for model in models]
        found.append(_drop_in("PyTorch", given, weights, lambda result: result["weight"].numpy(), tensor_goals))
    return found


def _drop_in(what: str, models: Any, weights: list[float], first_tensor: Any, goals: dict[str, float]) -> DropIn:
    def own() -> Any:
        helper = WeightedAggregationHelper()
        for site, (model, weight) in enumerate(zip(models, weights, strict=True)):
            helper.add(model, weight, f"site-{site}", 0)
        return helper.get_result()

    def ours(accumulate: str, group: int) -> Work:
        aggregator = FlcoreAggregator(accumulate=accumulate, group=group)

        def work() -> Any:
            for site, (model, weight) in enumerate(zip(models, weights, strict=True)):
                meta = {"NUM_STEPS_CURRENT_ROUND": weight, "client_name": f"site-{site}"}
                aggregator.accept_model(FLModel(params=model, params_type=ParamsType.FULL, meta=meta))
            return aggregator.aggregate_model().params

        return work

    works = {
        f"flcore {accumulate}, {how}": ours(accumulate, group)
        for accumulate in ("float32", "exact")
        for how, group in ((ONE_BY_ONE, 1), (IN_GROUPS, 4))
    }
    return DropIn(f"NVFLARE {version('nvflare')} FedAvg, {what}", own, works, first_tensor, goals)
