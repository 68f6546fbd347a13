"""NVIDIA FLARE: `WeightedAggregationHelper`, which its aggregators for NumPy models use."""

from typing import Any

from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore_bench.peers.contender import Contender, Models

PACKAGE = "nvflare"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:  # noqa: ARG001 - it has no threads
    """Return a round of the helper: add every client's arrays, then take the result."""
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
