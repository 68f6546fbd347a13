"""NVIDIA FLARE: what its FedAvg does with one result after the other, with NumPy's arrays and with PyTorch's."""

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore.adapters.nvflare import FlcoreAggregator
from flcore_bench.peers.exchange import Exchange, Models
from flcore_bench.timing import Work

ONE_BY_ONE, IN_GROUPS = "one by one", "groups of 4"


def exchanges(models: Models, weights: list[float]) -> list[Exchange]:
    """Return the exchange of NumPy arrays, and that of PyTorch's tensors where it is installed."""
    numpys = {
        f"flcore float32, {ONE_BY_ONE}": 2.2,
        f"flcore float32, {IN_GROUPS}": 4.0,
        f"flcore exact, {ONE_BY_ONE}": 1.0,
        f"flcore exact, {IN_GROUPS}": 1.0,
    }
    tensors = {f"flcore float32, {ONE_BY_ONE}": 1.0, f"flcore float32, {IN_GROUPS}": 1.5}
    found = [_exchange("NumPy", models, weights, lambda result: result["weight"], numpys)]
    if find_spec("torch"):
        import torch

        given = [{name: torch.from_numpy(array) for name, array in model.items()} for model in models]
        found.append(_exchange("PyTorch", given, weights, lambda result: result["weight"].numpy(), tensors))
    return found


def _exchange(what: str, models: Any, weights: list[float], first_tensor: Any, goals: dict[str, float]) -> Exchange:
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
    return Exchange(f"NVFLARE {version('nvflare')} FedAvg, {what}", own, works, first_tensor, goals)
