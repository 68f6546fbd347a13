"""Flower: its means, and its FedAvg strategy with its own mean and with flcore's adapter."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from flcore_bench.timing import Work
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp import strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from flcore.adapters.flower import FedAvg
from flcore_bench_peers.contest import Contender, Models
from flcore_bench_peers.drop_in import DropIn

PACKAGE = "flwr"
EXAMPLES = "num-examples"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:  # noqa: ARG001 - it has no threads
    """Return `aggregate_arrayrecords` and the legacy `aggregate`. Records are serialized beforehand, as in a reply."""
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


ReplyContainer = Callable[[list[Message]], Iterable[Message]]


def drop_ins(models: Models, weights: list[float]) -> list[DropIn]:
    """Return `aggregate_train` of FedAvg. Records are serialized beforehand, as in a reply."""
    from flwr.supercore.task_identity import TaskIdentity  # Flower 1.41 and newer; `contenders` does without

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    records = [ArrayRecord({name: Array(array) for name, array in model.items()}) for model in models]

    def aggregation(chosen: Any, container: ReplyContainer) -> Work:
        def work() -> Any:
            replies = []
            for node, (record, weight) in enumerate(zip(records, weights, strict=True)):
                content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight})})
                replies.append(Message(content, dst_node_id=node, message_type="train"))
            return chosen.aggregate_train(1, container(replies))[0]

        return work

    return [
        DropIn(
            f"Flower {version('flwr')} FedAvg",
            aggregation(strategy.FedAvg(), list),
            {
                "flcore float32, a list of replies": aggregation(FedAvg(accumulate="float32"), list),
                "flcore exact, a list of replies": aggregation(FedAvg(), list),
                "flcore float32, as they come, groups of 4": aggregation(FedAvg(accumulate="float32", group=4), iter),
                "flcore exact, as they come, groups of 4": aggregation(FedAvg(group=4), iter),
                "flcore float32, as they come, one by one": aggregation(FedAvg(accumulate="float32"), iter),
                "flcore exact, as they come, one by one": aggregation(FedAvg(), iter),
            },
            lambda result: result["weight"].numpy(),
            {"flcore float32, a list of replies": 8.0, "flcore exact, as they come, groups of 4": 2.5},
        )
    ]
