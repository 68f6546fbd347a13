"""Flower's strategies with flcore's mean: exact, client by client, and without those whose reply cannot be counted."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid, strategy

from flcore.adapters.flower.npy_format import RecordBuilder, array_views, convert
from flcore.aggregation.incremental import IncrementalAggregator, require_settings
from flcore.errors import QuorumError, UpdateError, WeightError
from flcore.model.spec import ModelSpec


class FlcoreMean(strategy.FedAvg):  # type: ignore[misc]  # it has a type only where Flower is installed
    """The mean of FedAvg, computed by flcore; to be mixed in behind a strategy that builds on FedAvg.

    A reply must have the tensors of the global model, by name, shape and dtype, finite values, and a weight that is a
    finite number >= 0; another is refused and logged, and the round goes on without it. Arrays are taken out of the
    replies once they are folded. A global model in other dtypes than the first one's (Flower's FedAdam makes float64 of
    float32) is sent in those of the first, which clients keep to.

    Attributes of the class, or of an instance before a run: `accumulate` is "exact", "float64" or "float32"
    (see `flcore.aggregate`); `group` is how many replies of a `StreamingGrid` are held and folded in one pass;
    `max_abs` bounds the magnitude of every element; `average_bytes` averages unsigned bytes, which must not change
    otherwise.
    """

    accumulate: str = "exact"
    group: int = 1
    max_abs: float = math.inf
    average_bytes: bool = False
    _aggregator: IncrementalAggregator | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Refuse settings that no round could have, and an order of bases in which this mean would not be used."""
        super().__init_subclass__(**keywords)
        require_settings("mean", cls.accumulate, cls.group, cls.max_abs)
        behind = cls.__mro__[cls.__mro__.index(FlcoreMean) + 1 :]
        rest = [each for each in behind if issubclass(each, strategy.FedAvg) and each is not strategy.FedAvg]
        if rest:
            order = f"class {cls.__name__}({rest[0].__name__}, FlcoreMean)"
            raise TypeError(f"FlcoreMean comes last, as it stands in for FedAvg's mean: {order}")

    def summary(self) -> None:
        """Log what the mean is, beside what Flower logs."""
        log(INFO, "\t├──> The mean is flcore's: %s, %s of a stream at once", self.accumulate, self.group)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round (see Flower's `FedAvg`); what the model is, is known from here."""
        sent = ModelSpec.of(array_views(arrays, "the global model"))
        known_spec = None if self._aggregator is None else self._aggregator.spec
        if self._aggregator is None or server_round == 1 or known_spec is None or _shapes(known_spec) != _shapes(sent):
            self._aggregator = self._create_aggregator()
        elif known_spec != sent:
            arrays = convert(arrays, known_spec)
        self._aggregator.begin_round(array_views(arrays, "the global model"))
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def _create_aggregator(self) -> IncrementalAggregator:
        return IncrementalAggregator(accumulate=self.accumulate, max_abs=self.max_abs, average_bytes=self.average_bytes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the replies' arrays, and their aggregated metrics; (None, None) where nobody replied.

        A list, whose models are in memory anyway, is combined in one pass; any other iterable is folded in groups as it
        is consumed. Raises `QuorumError` where there were replies and none could be counted, `WeightError` where all
        weights are zero, and `AggregationError` where a dtype cannot hold the mean.
        """
        aggregator = self._aggregator = self._aggregator or self._create_aggregator()
        aggregator.clear()
        aggregator.group = None if isinstance(replies, list) else self.group  # a list is held to its end
        mean = _RoundMean(aggregator, self.weighted_by_key)
        arrays = mean.of(replies)
        log(INFO, "aggregate_train: Received %s results and %s failures", len(mean.answers), mean.failures)
        if arrays is None:
            if mean.refusals:
                raise QuorumError(f"no reply of round {server_round} could be counted; the first: {mean.refusals[0]}")
            return None, None
        return arrays, self.train_metrics_aggr_fn(
            _with_common_metrics(list(mean.answers.values())), self.weighted_by_key
        )


class FedAvg(FlcoreMean):
    """Flower's FedAvg (McMahan et al., 2017) with flcore's mean.

    It takes the arguments of `flwr.serverapp.strategy.FedAvg`, and by keyword `accumulate`, `group`, `max_abs` and
    `average_bytes` (see `FlcoreMean`).
    """

    def __init__(
        self,
        *arguments: Any,
        accumulate: str = "exact",
        group: int = 1,
        max_abs: float = math.inf,
        average_bytes: bool = False,
        **keywords: Any,
    ) -> None:
        require_settings("mean", accumulate, group, max_abs)
        super().__init__(*arguments, **keywords)
        self.accumulate, self.group, self.max_abs, self.average_bytes = accumulate, group, max_abs, average_bytes


class _RoundMean:
    """One round's mean: `answers` is what is left of the replies that count, by node."""

    def __init__(self, aggregator: IncrementalAggregator, weighted_by: str) -> None:
        self._aggregator, self._weighted_by = aggregator, weighted_by
        self.answers: dict[str, RecordDict] = {}
        self.failures = 0
        self.refusals: list[str] = []

    def of(self, replies: Iterable[Message]) -> ArrayRecord | None:
        """Return the mean of the replies' arrays, or None where none counts."""
        for reply in self._with_content(replies):
            node = _node_name(reply)
            client = f"{node}, reply {len(self.answers)}" if node in self.answers else node
            try:
                self._aggregator.add(*self._contribution(reply, client))
            except UpdateError as error:
                self._refuse(error)
            else:
                self.answers[client] = _without_arrays(reply)
        if not self.answers or self._aggregator.spec is None:
            return None
        builder = RecordBuilder(self._aggregator.spec)
        try:
            self._aggregator.finish(builder.arrays)
        except QuorumError:  # those that were left turned out to be unsound
            return None
        finally:
            for late in self._aggregator.pop_rejected():
                self._refuse(late)
        return builder.build()

    def _with_content(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            if reply.has_error():
                self.failures += 1
                log(INFO, "\t> Received error in reply from %s: %s", _node_name(reply), reply.error.reason)
            else:
                yield reply
            del reply

    def _contribution(self, reply: Message, client: str) -> tuple[dict[str, Any], Any, str]:
        """Return a reply's arrays, its weight and its client, or raise `UpdateError`."""
        records, metrics = _records(reply.content, ArrayRecord), _records(reply.content, MetricRecord)
        if len(records) != 1 or len(metrics) != 1:
            raise UpdateError(
                f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(metrics)}", client=client
            )
        (record,), (metric,) = records.values(), metrics.values()
        if self._weighted_by not in metric:
            raise WeightError(f"its metrics lack the weight, {self._weighted_by!r}", client=client)
        return array_views(record, client), metric[self._weighted_by], client

    def _refuse(self, error: UpdateError) -> None:
        self.failures += 1
        self.refusals.append(str(error))
        self.answers.pop(error.client, None)
        log(WARNING, "\t> Refused: %s", error)


def _node_name(reply: Message) -> str:
    return f"node {reply.metadata.src_node_id}"


def _without_arrays(reply: Message) -> RecordDict:
    """Return a reply's content, whose arrays are let go."""
    content: RecordDict = reply.content
    for name in _records(content, ArrayRecord):
        del content[name]
    return content


def _records(content: RecordDict, kind: Any) -> dict[str, Any]:
    """Return the records of a kind. Flower's `array_records` is part of a cycle, which would keep the arrays alive."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec.tensors}


def _metric_lengths(metrics: MetricRecord) -> frozenset[tuple[str, int]]:
    """Return each metric's name and length, -1 for a single number."""
    return frozenset((name, len(value) if isinstance(value, list) else -1) for name, value in metrics.items())


def _with_common_metrics(answers: list[RecordDict]) -> list[RecordDict]:
    """Return the answers with the metrics that most have, by name and length: others cannot be averaged with them."""
    names = [_metric_lengths(*_records(answer, MetricRecord).values()) for answer in answers]
    (most, _), *rest = Counter(names).most_common()
    if rest:
        log(
            WARNING,
            "\t> %s replies have other metrics than %s; theirs are left out",
            sum(n for _, n in rest),
            sorted(name for name, _ in most),
        )
    return [answer for answer, has in zip(answers, names, strict=True) if has == most]
