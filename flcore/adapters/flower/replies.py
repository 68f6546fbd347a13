"""The replies of one Flower round: each is counted or refused by name, and those that count become one model."""

from collections import Counter
from collections.abc import Iterable, Iterator
from logging import INFO, WARNING
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log

from flcore.adapters.flower.npy_format import RecordBuilder, array_views
from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.errors import AggregationError, QuorumError, UpdateError, WeightError


class RoundReplies:
    """The replies of one round.

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
        """Return the combination of the replies' arrays; None if no reply counts.

        Raises:
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the result, or the rule needs more replies.
        """
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
            self._finish(builder)
        except QuorumError:  # the remaining replies were found invalid
            return None
        except AggregationError as error:
            if not self.refusals:
                raise
            raise AggregationError(f"{error}; the first refusal: {self.refusals[0]}") from error
        return builder.build()

    def contents_for_metrics(self) -> list[RecordDict]:
        """Return the answers with the most common set of metrics. Flower can average only these."""
        answers = list(self.answers.values())
        metrics = [_metric_lengths(_metrics_of(answer)) for answer in answers]
        (common, _), *others = Counter(metrics).most_common()
        if others:
            log(
                WARNING,
                "\t> %s replies have other metrics than %s; theirs are left out",
                sum(count for _, count in others),
                sorted(name for name, _ in common),
            )
        return [answer for answer, own in zip(answers, metrics, strict=True) if own == common]

    def _finish(self, builder: RecordBuilder) -> None:
        try:
            self._aggregator.finish(builder.arrays)
        finally:
            for rejected in self._aggregator.pop_rejected():  # found invalid when their group was combined
                self._refuse(rejected)
        # A rule may ignore weights. The metrics' mean does not.
        require_positive_weight([float(_metrics_of(answer)[self._weighted_by]) for answer in self.answers.values()])

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


def _metrics_of(answer: RecordDict) -> MetricRecord:
    (metrics,) = _records(answer, MetricRecord).values()
    return metrics


def _metric_lengths(metrics: MetricRecord) -> frozenset[tuple[str, int]]:
    """Return each metric's name and length, -1 for a single number."""
    return frozenset((name, len(value) if isinstance(value, list) else -1) for name, value in metrics.items())
