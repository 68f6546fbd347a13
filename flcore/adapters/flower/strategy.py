"""Flower's strategies with flcore's aggregation: any rule, exact sums, invalid replies refused."""

import math
from collections.abc import Iterable
from logging import INFO
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, strategy

from flcore.adapters.flower.npy_format import array_views, convert
from flcore.adapters.flower.replies import RoundReplies
from flcore.aggregation.incremental import IncrementalAggregator, require_settings
from flcore.errors import AggregationError, QuorumError
from flcore.model.spec import ModelSpec
from flcore.rules.kinds import Rule, min_updates
from flcore.rules.named import resolve_rule


class FlcoreStrategy(strategy.FedAvg):  # type: ignore[misc]  # mypy runs without Flower
    """A strategy of Flower whose replies are combined by flcore, by any rule.

    It is Flower's FedAvg (sampling, messages, metrics) with another combination of the arrays. It is used in two ways:

    - by itself: `FlcoreStrategy(rule="median", min_train_nodes=5)`;
    - as a mixin, listed after a strategy that uses FedAvg's mean: `class FedAdam(strategy.FedAdam, FlcoreStrategy)`.
      The settings are then attributes of the class.

    The name says who combines, and not how. Flower names a strategy after its rule (`FedMedian`, `Krum`); here the rule
    is an argument, so neither `FedAvg` nor `FlcoreMean` is true of it.

    A valid reply has the tensors of the global model (the same names, shapes and dtypes), finite values, and a weight
    that is a finite number >= 0. Any other reply is refused and logged, and the round continues without it. Arrays are
    removed from the replies once they are taken. The global model is always sent in the dtypes of the first one, also
    where a strategy changes them (Flower's FedAdam turns float32 into float64). A rule sees whole models.

    Memory, for N replies that count and a model of M bytes with P parameters, beside the global model and the result:

    - A rule that is a sum (`flcore.Sum`, such as a mean) folds replies as they arrive: `group` · M, and a total of 4, 8
      or 16 · P bytes (float32, float64, exact). On Flower's own grid, which collects replies in a list: N · M.
    - Any other rule (`flcore.Columns`, `flcore.Geometry`) keeps references to all replies' bytes until the round's end:
      N · M, with a `StreamingGrid` too, and at most 4 · 2^19 elements per reply while ranges are combined.

    Args:
        *arguments: The arguments of `flwr.serverapp.strategy.FedAvg`.
        rule: A name, such as "mean" (default) or "trimmed_mean(f=2)" (see `flcore.RULES`), or a rule.
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        group: The number of replies of a `StreamingGrid` that a sum holds and folds in one pass, >= 1. Default: 1.
        max_abs: The largest magnitude of an element. Default: no bound but that of the dtype.
        average_bytes: Average unsigned bytes. By default, they must not change.
        **keywords: The keyword arguments of `flwr.serverapp.strategy.FedAvg`.

    Attributes:
        rule: As the argument. This and the next four may be set on a subclass, or on an instance before a run.
        accumulate: As the argument.
        group: As the argument.
        max_abs: As the argument.
        average_bytes: As the argument.

    Raises:
        JobError: A setting is invalid for every round.
        TypeError: A subclass has a base whose combination would be replaced.

    Example:
        >>> robust = FlcoreStrategy(rule="trimmed_mean(f=2)", min_train_nodes=5)  # doctest: +SKIP
        >>> robust.start(grid=StreamingGrid(grid), initial_arrays=arrays)  # doctest: +SKIP
    """

    rule: str | Rule = "mean"
    accumulate: str = "exact"
    group: int = 1
    max_abs: float = math.inf
    average_bytes: bool = False
    _aggregator: IncrementalAggregator | None = None

    def __init__(
        self,
        *arguments: Any,
        rule: str | Rule | None = None,
        accumulate: str | None = None,
        group: int | None = None,
        max_abs: float | None = None,
        average_bytes: bool | None = None,
        **keywords: Any,
    ) -> None:
        given = {
            "rule": rule,
            "accumulate": accumulate,
            "group": group,
            "max_abs": max_abs,
            "average_bytes": average_bytes,
        }
        for name, value in given.items():
            if value is not None:  # or else the class decides, also where a strategy of Flower calls this
                setattr(self, name, value)
        require_settings(self.rule, self.accumulate, self.group, self.max_abs)
        super().__init__(*arguments, **keywords)

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Raise `JobError` for invalid settings, and `TypeError` for a base that would override this combination."""
        super().__init_subclass__(**keywords)
        require_settings(cls.rule, cls.accumulate, cls.group, cls.max_abs)
        later = cls.__mro__[cls.__mro__.index(FlcoreStrategy) + 1 :]
        hidden = [base for base in later if issubclass(base, strategy.FedAvg) and base is not strategy.FedAvg]
        if hidden:
            order = f"class {cls.__name__}({hidden[0].__name__}, FlcoreStrategy)"
            raise TypeError(f"FlcoreStrategy must be the last base, because it replaces FedAvg's mean: {order}")

    def summary(self) -> None:
        """Log the settings of the combination, and Flower's summary."""
        name = resolve_rule(self.rule).name
        log(INFO, "\t├──> flcore combines: %s, %s, %s of a stream at once", name, self.accumulate, self.group)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Begin a round (see Flower's `FedAvg`), with the tensors of the global model as those of all replies.

        A strategy may change dtypes between rounds; the model is sent in those of the first round. Another run, or a
        model of other shapes, starts anew.

        Raises:
            AggregationError: The rule needs more replies than nodes are asked.
        """
        sent = ModelSpec.of(array_views(arrays, "the global model"))
        known_spec = None if self._aggregator is None else self._aggregator.spec
        if self._aggregator is None or server_round == 1 or known_spec is None or _shapes(known_spec) != _shapes(sent):
            self._aggregator = self._create_aggregator()
        elif known_spec != sent:
            arrays = convert(arrays, known_spec)
        self._aggregator.begin_round(array_views(arrays, "the global model"))
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._require_enough(len(messages), server_round)
        return messages

    def _create_aggregator(self) -> IncrementalAggregator:
        return IncrementalAggregator(
            rule=self.rule, accumulate=self.accumulate, max_abs=self.max_abs, average_bytes=self.average_bytes
        )

    def _require_enough(self, nodes: int, server_round: int) -> None:
        """Raise `AggregationError` if even all nodes' replies are too few for the rule. A round may ask no node."""
        rule = resolve_rule(self.rule)
        needed = min_updates(rule)
        if 0 < nodes < needed:
            raise AggregationError(
                f"rule {rule.name!r} needs at least {needed} updates, and round {server_round} asks {nodes} nodes: "
                f"set min_train_nodes and min_available_nodes to {needed} or more"
            )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the combination of the replies' arrays, and their aggregated metrics.

        Args:
            server_round: The round's number.
            replies: The replies. A list is combined in one pass. A sum folds any other iterable in groups as it is
                consumed.

        Returns:
            The model and the metrics; `(None, None)` if there are no replies.

        Raises:
            QuorumError: There are replies, and none of them is valid.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the result, or the rule needs more replies than there are valid ones.
        """
        aggregator = self._aggregator = self._aggregator or self._create_aggregator()
        aggregator.clear()
        aggregator.group = None if isinstance(replies, list) else self.group  # a list is in memory already
        received = RoundReplies(aggregator, self.weighted_by_key)
        arrays = received.combine(replies)
        log(INFO, "aggregate_train: Received %s results and %s failures", len(received.answers), received.failures)
        if arrays is None:
            if received.refusals:
                raise QuorumError(f"no reply of round {server_round} counts; the first refusal: {received.refusals[0]}")
            return None, None
        return arrays, self.train_metrics_aggr_fn(received.contents_for_metrics(), self.weighted_by_key)


FlcoreMean = FlcoreStrategy
"""The former name of `FlcoreStrategy`, whose rule is the mean unless it is set."""


class FedAvg(FlcoreStrategy):
    """`FlcoreStrategy` under the name of Flower's strategy, so that an app with FedAvg changes its import alone.

    The mean of McMahan et al., 2017, unless `rule` is set.

    Example:
        >>> strategy = FedAvg(fraction_train=0.5, group=4)  # doctest: +SKIP
        >>> strategy.start(grid=StreamingGrid(grid, at_once=4), initial_arrays=arrays)  # doctest: +SKIP
    """


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec.tensors}
