"""Flower: `aggregate_arrayrecords` of the Message API, and the legacy `aggregate` that older strategies call."""

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from flcore_bench.peers.contender import Contender, Models

PACKAGE = "flwr"
EXAMPLES = "num-examples"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:  # noqa: ARG001 - it has no threads
    """Return both; the records, which hold each model serialized as a reply does, are made beforehand."""
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in model.items()}),
                "metrics": MetricRecord({EXAMPLES: weight}),
            }
        )
        for model, weight in zip(models, weights, strict=True)
    ]
    results = [(list(model.values()), round(weight)) for model, weight in zip(models, weights, strict=True)]
    first = next(iter(models[0]))
    return [
        Contender(
            "Flower aggregate_arrayrecords",
            "Flower",
            lambda: aggregate_arrayrecords(records, EXAMPLES),
            lambda result: result[first].numpy(),
            {"flat": 10.0, "many": 5.0},
        ),
        Contender("Flower aggregate (legacy)", "Flower (legacy)", lambda: aggregate(results), lambda result: result[0]),
    ]
