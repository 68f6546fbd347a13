"""Flower: a strategy's `aggregate_train` on the replies of a round."""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.supercore.task_identity import TaskIdentity

from flcore.adapters.flower import FedAvg
from flcore_bench.peers.exchange import Exchange, Models
from flcore_bench.timing import Work

Form = Callable[[list[Message]], Iterable[Message]]


def exchanges(models: Models, weights: list[float]) -> list[Exchange]:
    """Return the one exchange; the records, which hold each model as it was received, are made beforehand."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    records = [ArrayRecord({name: Array(array) for name, array in model.items()}) for model in models]

    def aggregation(chosen: Any, form: Form) -> Work:
        def work() -> Any:
            replies = []
            for node, (record, weight) in enumerate(zip(records, weights, strict=True)):
                content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight})})
                replies.append(Message(content, dst_node_id=node, message_type="train"))
            return chosen.aggregate_train(1, form(replies))[0]

        return work

    return [
        Exchange(
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
