"""Flower's strategies with flcore's mean: exact, folded as replies arrive, invalid replies refused."""

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


class FlcoreMean(strategy.FedAvg):  # type: ignore[misc]  # mypy runs without Flower
    """The mean of FedAvg, computed by flcore: a mixin, listed after a strategy that builds on FedAvg.

    A valid reply has the tensors of the global model (the same names, shapes and dtypes), finite values, and a weight
    that is a finite number >= 0. Any other reply is refused and logged, and the round continues without it. Arrays are
    removed from the replies once they are folded. The global model is always sent in the dtypes of the first one, also
    where a strategy changes them (Flower's FedAdam turns float32 into float64).

    Attributes:
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        group: The number of replies of a `StreamingGrid` to hold and fold in one pass, >= 1. Default: 1.
        max_abs: The largest magnitude of an element. Default: no bound but that of the dtype.
        average_bytes: Average unsigned bytes. By default, they must not change.

    Set them on the class, or on an instance before a run.

    Example:
        >>> class FedAdam(flwr.serverapp.strategy.FedAdam, FlcoreMean):  # doctest: +SKIP
        ...     group = 4
    """

    accumulate: str = "exact"
    group: int = 1
    max_abs: float = math.inf
    average_bytes: bool = False
    _aggregator: IncrementalAggregator | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Raise `JobError` for invalid settings, and `TypeError` for a base that would override this mean."""
        super().__init_subclass__(**keywords)
        require_settings("mean", cls.accumulate, cls.group, cls.max_abs)
        later = cls.__mro__[cls.__mro__.index(FlcoreMean) + 1 :]
        hidden = [base for base in later if issubclass(base, strategy.FedAvg) and base is not strategy.FedAvg]
        if hidden:
            order = f"class {cls.__name__}({hidden[0].__name__}, FlcoreMean)"
            raise TypeError(f"FlcoreMean must be the last base, because it replaces FedAvg's mean: {order}")

    def summary(self) -> None:
        """Log the settings of the mean, and Flower's summary."""
        log(INFO, "\t├──> The mean is flcore's: %s, %s of a stream at once", self.accumulate, self.group)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round (see Flower's `FedAvg`), with the tensors of the global model as those of all replies.

        A strategy may change dtypes between rounds; the model is sent in those of the first round. Another run, or a
        model of other shapes, starts anew.
        """
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
        """Return the mean of the replies' arrays, and their aggregated metrics.

        Args:
            server_round: The round's number.
            replies: The replies. A list is combined in one pass. Any other iterable is folded in groups as it is
                consumed.

        Returns:
            The mean and the metrics; `(None, None)` if there are no replies.

        Raises:
            QuorumError: There are replies, and none of them is valid.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the mean.
        """
        aggregator = self._aggregator = self._aggregator or self._create_aggregator()
        aggregator.clear()
        aggregator.group = None if isinstance(replies, list) else self.group  # a list is in memory already
        mean = _RoundMean(aggregator, self.weighted_by_key)
        arrays = mean.combine(replies)
        log(INFO, "aggregate_train: Received %s results and %s failures", len(mean.answers), mean.failures)
        if arrays is None:
            if mean.refusals:
                raise QuorumError(f"no reply of round {server_round} counts; the first refusal: {mean.refusals[0]}")
            return None, None
        return arrays, self.train_metrics_aggr_fn(
            _with_common_metrics(list(mean.answers.values())), self.weighted_by_key
        )


class FedAvg(FlcoreMean):
    """Flower's FedAvg (McMahan et al., 2017) with flcore's mean.

    Args:
        *arguments: The arguments of `flwr.serverapp.strategy.FedAvg`.
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        group: The number of replies of a `StreamingGrid` to hold and fold in one pass, >= 1. Default: 1.
        max_abs: The largest magnitude of an element. Default: no bound but that of the dtype.
        average_bytes: Average unsigned bytes. By default, they must not change.
        **keywords: The keyword arguments of `flwr.serverapp.strategy.FedAvg`.

    Raises:
        JobError: A setting is invalid for every round.

    Example:
        >>> strategy = FedAvg(fraction_train=0.5, group=4)  # doctest: +SKIP
        >>> strategy.start(grid=StreamingGrid(grid, at_once=4), initial_arrays=arrays)  # doctest: +SKIP
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
    """The mean of one round.

    Attributes:
        answers: The contents of the replies that count, by node, without their arrays.
        failures: The number of errors and refused replies.
        refusals: The errors of refused replies, in order.
    """

    def __init__(self, aggregator: IncrementalAggregator, weighted_by: str) -> None:
        self._aggregator, self._weighted_by = aggregator, weighted_by
        self.answers: dict[str, RecordDict] = {}
        self.failures = 0
        self.refusals: list[str] = []

    def combine(self, replies: Iterable[Message]) -> ArrayRecord | None:
        """Return the mean of the replies' arrays; None if no reply counts."""
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
        except QuorumError:  # the remaining replies were found invalid
            return None
        finally:
            for rejected in self._aggregator.pop_rejected():  # found invalid when their group was folded
                self._refuse(rejected)
        return builder.build()

    def _with_content(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            if reply.has_error():
                self.failures += 1
                log(INFO, "\t> Received error in reply from %s: %s", _node_name(reply), reply.error.reason)
            else:
                yield reply
            del reply  # the loop variable would keep its arrays alive while the next reply is awaited

    def _contribution(self, reply: Message, client: str) -> tuple[dict[str, Any], Any, str]:
        """Return the arrays, the weight and the client of a reply. Raises `UpdateError`."""
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
    """Remove the arrays from a reply's content, and return it."""
    content: RecordDict = reply.content
    for name in _records(content, ArrayRecord):
        del content[name]
    return content


def _records(content: RecordDict, kind: Any) -> dict[str, Any]:
    """Return the records of a kind, by name.

    Flower's `array_records` makes a reference cycle, which keeps the arrays alive until a garbage collection.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec.tensors}


def _metric_lengths(metrics: MetricRecord) -> frozenset[tuple[str, int]]:
    """Return each metric's name and length, -1 for a single number."""
    return frozenset((name, len(value) if isinstance(value, list) else -1) for name, value in metrics.items())


def _with_common_metrics(answers: list[RecordDict]) -> list[RecordDict]:
    """Return the answers with the most common set of metrics, by name and length. Flower can average only these."""
    metrics = [_metric_lengths(*_records(answer, MetricRecord).values()) for answer in answers]
    (common, _), *others = Counter(metrics).most_common()
    if others:
        log(
            WARNING,
            "\t> %s replies have other metrics than %s; theirs are left out",
            sum(count for _, count in others),
            sorted(name for name, _ in common),
        )
    return [answer for answer, own in zip(answers, metrics, strict=True) if own == common]
