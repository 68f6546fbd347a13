"""The evaluations of a model by clients, each with its weight."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flcore.errors import QuorumError
from flcore.job.contract import Contract
from flcore.model.chunks import GlobalModel
from flcore.server.history import weighted_average
from flcore.server.task_runner import TaskRequest, TaskRunner
from flcore.server.updates import timed


class Evaluation(NamedTuple):
    """A client's answer to a task that returns metrics.

    Attributes:
        weight: Its weight in averages, usually the number of examples.
        metrics: The metrics, by name.
    """

    weight: float
    metrics: dict[str, float]


def ask_for_metrics(task_runner: TaskRunner, request: TaskRequest, model: GlobalModel) -> dict[str, Evaluation]:
    """Have clients run a task that returns metrics, in one attempt. Any number of answers counts."""
    request.restore_answers(request.call.answers())
    with timed(request.record, request.task):
        task_runner.run_first(request, model)
    return {client: Evaluation(each.weight, each.metrics) for client, each in sorted(request.answers.items())}


def average_of(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return the metrics of clients, averaged by weight, in the order of the clients' names.

    >>> average_of({"a": Evaluation(1.0, {"loss": 1.0}), "b": Evaluation(3.0, {"loss": 2.0})})
    {'loss': 1.75}
    """
    return weighted_average((evaluations[name].metrics, evaluations[name].weight) for name in sorted(evaluations))


def sites_without(contract: Contract, asked: Iterable[str], answered: Collection[str]) -> list[str]:
    """Return the sites without an answer, sorted: of those that were asked, and of those that the contract names."""
    named = contract.clients if isinstance(contract.clients, tuple) else ()
    return sorted({*asked, *named} - set(answered))


def require_answers(task: str, answered: Collection[str]) -> None:
    """Raise `QuorumError` if a result is of no site at all. For workflows whose answers are the result."""
    if not answered:
        raise QuorumError(f"tasks.{task}: expected the answer of one site or more, got none that can be used")


def evaluations_of(recorded: Mapping[str, Sequence[Any]]) -> dict[str, Evaluation]:
    """Return evaluations from their form in the run's record: weight and metrics, by client."""
    return {client: Evaluation(weight, dict(metrics)) for client, (weight, metrics) in recorded.items()}
