"""Flower's strategies with flcore's mean: exact, client by client, and without those whose reply cannot be counted."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, strategy

from flcore.adapters.flower.npy import BlankRecord, values_of
from flcore.aggregation.running import Running
from flcore.errors import QuorumError, UpdateError, WeightError
from flcore.model.spec import ModelSpec


class FlcoreMean(strategy.FedAvg):  # type: ignore[misc]  # it has a type only where Flower is installed
    """The mean of FedAvg, computed by flcore; to be mixed in behind a strategy that builds on FedAvg.

    A reply must have the tensors of the global model, by name and shape, with one dtype each for all replies, finite
    values, and a weight that is a finite number >= 0; another is refused and logged, and the round goes on without it.
    Arrays are taken out of the replies once they are folded. `accumulate` is "exact", "float64" or "float32" (see
    `flcore.aggregate`); `group` is how many replies of a `StreamingGrid` are held and folded in one pass; `max_abs`
    bounds the magnitude of every element.
    """

    accumulate: str = "exact"
    group: int = 1
    max_abs: float = math.inf
    _spec: ModelSpec | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round (see Flower's `FedAvg`); what the model is, is known from here."""
        sent = ModelSpec.of(values_of(arrays, "the global model"))
        if self._spec is None or _shapes(self._spec) != _shapes(sent):
            self._spec = sent
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the replies' arrays, and their aggregated metrics; (None, None) where nobody replied.

        A list, whose models are in memory anyway, is combined in one pass; any other iterable is folded in groups as it
        is consumed. Raises `QuorumError` where there were replies and none could be counted, `WeightError` where all
        weights are zero, and `AggregationError` where a dtype cannot hold the mean.
        """
        running = Running(accumulate=self.accumulate, group=self.group, max_abs=self.max_abs, spec=self._spec)
        mean = _Mean(running, self.weighted_by_key)
        if isinstance(replies, list):
            mean.of_list(replies)
        else:
            mean.of_stream(replies)
        log(INFO, "aggregate_train: Received %s results and %s failures", len(mean.answers), mean.failures)
        if mean.arrays is None:
            if mean.refusals:
                raise QuorumError(f"no reply of round {server_round} could be counted; the first: {mean.refusals[0]}")
            return None, None
        self._spec = running.spec
        return mean.arrays, self.train_metrics_aggr_fn(_alike(mean.answers), self.weighted_by_key)


class FedAvg(FlcoreMean):
    """Flower's FedAvg (McMahan et al., 2017) with flcore's mean; see `FlcoreMean` for the first three arguments.

    All other arguments are those of `flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(
        self,
        *arguments: Any,
        accumulate: str = "exact",
        group: int = 1,
        max_abs: float = math.inf,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.accumulate, self.group, self.max_abs = accumulate, group, max_abs


class _Mean:
    """One round's mean, on its way: `answers` is what is left of the replies that count, `arrays` what comes out."""

    def __init__(self, running: Running, weighted_by: str) -> None:
        self._running, self._weighted_by = running, weighted_by
        self.answers: list[RecordDict] = []
        self.arrays: ArrayRecord | None = None
        self.failures = 0
        self.refusals: list[UpdateError] = []

    def of_stream(self, replies: Iterable[Message]) -> None:
        """Fold replies as they come."""
        for reply in self._with_content(replies):
            try:
                self._running.add(*self._parts(reply, _name_of(reply)))
            except UpdateError as error:
                self._refuse(error)
            else:
                self.answers.append(_without_arrays(reply))
        if self.answers:
            self.arrays = self._finished()

    def of_list(self, replies: list[Message]) -> None:
        """Combine all replies in one pass, and once more without each that turns out to be unsound."""
        held: dict[str, Message] = {}
        for reply in self._with_content(replies):
            name = _name_of(reply)
            name = f"{name}, reply {len(held)}" if name in held else name
            try:
                self._running.hold(*self._parts(reply, name))
            except UpdateError as error:
                self._refuse(error)
            else:
                held[name] = reply
        while held and self.arrays is None:
            try:
                self.arrays = self._finished()
            except UpdateError as error:
                if error.client not in held:
                    raise
                self._refuse(error)
                self._running.drop(error.client)
                del held[error.client]
        self.answers = [_without_arrays(reply) for reply in held.values()]

    def _with_content(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            if reply.has_error():
                self.failures += 1
                log(INFO, "\t> Received error in reply from %s: %s", _name_of(reply), reply.error.reason)
            else:
                yield reply
            del reply

    def _parts(self, reply: Message, client: str) -> tuple[dict[str, Any], Any, str]:
        """Return a reply's arrays, its weight and its client, or raise `UpdateError`."""
        records, metrics = _named(reply.content, ArrayRecord), _named(reply.content, MetricRecord)
        if len(records) != 1 or len(metrics) != 1:
            raise UpdateError(
                f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(metrics)}", client=client
            )
        (record,), (metric,) = records.values(), metrics.values()
        if self._weighted_by not in metric:
            raise WeightError(f"its metrics lack the weight, {self._weighted_by!r}", client=client)
        return values_of(record, client), metric[self._weighted_by], client

    def _refuse(self, error: UpdateError) -> None:
        self.failures += 1
        self.refusals.append(error)
        log(WARNING, "\t> Refused: %s", error)

    def _finished(self) -> ArrayRecord:
        spec = self._running.spec
        if spec is None:
            raise QuorumError("there is nothing to aggregate")
        blank = BlankRecord(spec)
        self._running.finish(blank.arrays)
        return blank.filled()


def _name_of(reply: Message) -> str:
    return f"node {reply.metadata.src_node_id}"


def _without_arrays(reply: Message) -> RecordDict:
    """Return a reply's content, whose arrays are let go."""
    content: RecordDict = reply.content
    for name in _named(content, ArrayRecord):
        del content[name]
    return content


def _named(content: RecordDict, kind: Any) -> dict[str, Any]:
    """Return the records of a kind. Flower's `array_records` is part of a cycle, which would keep the arrays alive."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec.tensors}


def _alike(answers: list[RecordDict]) -> list[RecordDict]:
    """Return the answers with the metrics that most have: others cannot be averaged with them."""
    names: list[frozenset[str]] = [frozenset(*_named(answer, MetricRecord).values()) for answer in answers]
    (most, _), *others = Counter(names).most_common()
    if others:
        log(
            WARNING,
            "\t> %s replies have other metrics than %s; theirs are left out",
            sum(n for _, n in others),
            sorted(most),
        )
    return [answer for answer, has in zip(answers, names, strict=True) if has == most]
