"""flcore inside NVIDIA FLARE: an aggregator for `FedAvgRecipe(aggregator=...)` and for `ScatterAndGather`.

It accepts full weights or differences, as NumPy arrays, PyTorch tensors, or NVFLARE's references to tensors on disk.
The result has arrays of the same library.
"""

import logging
import math
import re
import threading
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLMetaKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from flcore.adapters.nvflare_round import RoundResults, is_number
from flcore.aggregation.incremental import IncrementalAggregator, require_settings
from flcore.errors import AggregationError, JobError, QuorumError, TensorMismatch, UpdateError, WeightError

logger = logging.getLogger(__name__)


class FlcoreAggregator(ModelAggregator):  # type: ignore[misc]  # mypy runs without NVFLARE
    """The weighted mean of FedAvg (McMahan et al., 2017), computed by flcore as results arrive.

    The weight of a result is the `NUM_STEPS_CURRENT_ROUND` of its meta, a finite number >= 0, times its client's entry
    in `aggregation_weights`. All results of a job have the tensors of the first one: the same names, shapes and dtypes.
    All results of a round are full weights, or all are differences. Any other result is refused with an `UpdateError`
    that names the client and the tensor. NVFLARE logs it, and the round continues without this result.

    Args:
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        rule: "mean" (default), "unweighted_mean", which ignores the number of steps, or another key of `flcore.RULES`.
            "median" and "trimmed_mean(f=2)" hold all results of a round.
        group: The number of results to hold and fold in one pass, >= 1. More is faster and takes more memory.
            Default: 1.
        max_abs: The largest magnitude of an element. Default: None, no bound but that of the dtype.
        exclude_vars: A regular expression; tensors whose name it finds are left out. Default: None, all tensors count.
        aggregation_weights: A factor for the weight by client, finite and >= 0; 1 for a client without an entry.
            Default: None.
        average_bytes: Average unsigned bytes. By default, they must be equal to those of the first result.

    Raises:
        JobError: A setting is invalid for every round.

    Example:
        >>> recipe = FedAvgRecipe(aggregator=FlcoreAggregator(group=4), ...)  # doctest: +SKIP
    """

    def __init__(
        self,
        accumulate: str = "exact",
        rule: str = "mean",
        group: int = 1,
        max_abs: float | None = None,
        exclude_vars: str | None = None,
        aggregation_weights: dict[str, float] | None = None,
        average_bytes: bool = False,
    ) -> None:
        """Validate the settings (see the class)."""
        super().__init__()
        require_settings(rule, accumulate, group, math.inf if max_abs is None else max_abs)
        for client, factor in (aggregation_weights or {}).items():
            if not is_number(factor) or factor < 0:
                raise JobError(f"aggregation_weights: {client!r} has {factor!r}, expected a finite number >= 0")
        try:
            re.compile(exclude_vars or "")
        except re.error as error:
            raise JobError(f"exclude_vars: {exclude_vars!r} is no regular expression: {error}") from None
        self.accumulate, self.rule, self.group, self.max_abs = accumulate, rule, group, max_abs
        self.exclude_vars, self.aggregation_weights = exclude_vars, aggregation_weights
        self.average_bytes = average_bytes
        self._lock = threading.Lock()
        self._round = RoundResults()
        self._aggregator: IncrementalAggregator | None = None
        self._tensor_aggregators: dict[str, IncrementalAggregator] = {}
        self._is_partially_folded = False  # a lazy result was folded in some tensors only

    def accept_model(self, model: FLModel) -> None:
        """Add a result to the round.

        Args:
            model: The result of one client, with its name in the meta.

        Raises:
            UpdateError: The result is refused; the round is unchanged.
            AggregationError: A result of this round was folded in part.
        """
        client = str((model.meta or {}).get("client_name", "?"))
        with self._lock:
            self._require_consistent()
            try:
                params, weight = self._params(model, client), self._weight(model, client)
                is_lazy = any(callable(getattr(tensor, "materialize", None)) for tensor in params.values())
                self._round.require_same_kind(model, is_lazy, client)
                (self._add_lazy if is_lazy else self._add)(params, weight, client)
            except UpdateError as error:
                self._refuse(error)
                raise
            self._round.count(model, is_lazy, weight, client)

    def aggregate_model(self) -> FLModel:
        """Return the mean of the round, and start the next one.

        Returns:
            The mean of the results and of their metrics.

        Raises:
            QuorumError: No result counts.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the mean, or a result was folded in part.
        """
        with self._lock:
            self._require_consistent()
            try:
                params = self._finish_round()
            except QuorumError as error:
                first = f"; the first refusal: {self._round.refusals[0]}" if self._round.refusals else ""
                raise QuorumError(f"{error}{first}") from None
            metrics, kind = self._round.metrics(), self._round.kind
            self._round = RoundResults()
            return FLModel(params=params, params_type=kind, metrics=metrics)

    def reset_stats(self) -> None:
        """Discard the results of the round. The names, shapes and dtypes of the job's tensors stay known."""
        with self._lock:
            self._round, self._is_partially_folded = RoundResults(), False
            for aggregator in self._aggregators():
                aggregator.clear()

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Add a result (classic workflows); log a refused one.

        Args:
            shareable: The result of one client.
            fl_ctx: NVFLARE's context.

        Returns:
            Whether the result counts.
        """
        self.fl_ctx = fl_ctx
        client = shareable.get_peer_prop(key=ReservedKey.IDENTITY_NAME, default="?")
        if (code := shareable.get_return_code()) and code != ReturnCode.OK:
            self.log_warning(fl_ctx, f"client {client!r} returned {code}; its result is left out")
            return False
        try:
            from_shareable(shareable)
            model = FLModelUtils.from_shareable(shareable, fl_ctx)
        except (ValueError, TypeError) as error:
            self.log_error(fl_ctx, f"client {client!r}: expected a model: {error}")
            return False
        model.meta["client_name"] = client
        try:
            self.accept_model(model)
        except UpdateError:  # logged by `_refuse`
            return False
        return True

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Log the settings of the mean at the start of a run."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            self.log_info(fl_ctx, f"the mean is flcore's: {self.rule}, {self.accumulate}, {self.group} at once")

    def _create_aggregator(self, group: int) -> IncrementalAggregator:
        return IncrementalAggregator(
            rule=self.rule,
            accumulate=self.accumulate,
            group=group,
            max_abs=math.inf if self.max_abs is None else self.max_abs,
            double_buffer=True,
            average_bytes=self.average_bytes,
        )

    def _aggregators(self) -> list[IncrementalAggregator]:
        return [*([] if self._aggregator is None else [self._aggregator]), *self._tensor_aggregators.values()]

    def _add(self, params: Mapping[str, Any], weight: float, client: str) -> None:
        """Add tensors that are in memory."""
        aggregator = self._aggregator or self._create_aggregator(self.group)
        if self.group > 1 and not self._round.has_results:
            # The first result decides between weights and differences, so it is checked before it is held.
            aggregator.check(params, weight, client)
        try:
            aggregator.add(params, weight, client)
            self._aggregator = aggregator
        finally:
            self._drop_rejected()

    def _add_lazy(self, params: Mapping[str, Any], weight: float, client: str) -> None:
        """Check all tensors, then fold them, with one tensor in memory at a time.

        There is one aggregator for each tensor. Each tensor is read twice, because a refused result must leave no trace
        in any of them.
        """
        if odd := sorted(set(self._tensor_aggregators) ^ set(params)) if self._tensor_aggregators else []:
            raise TensorMismatch("it is not a tensor of both this result and the first", client=client, tensor=odd[0])
        aggregators = self._tensor_aggregators or {name: self._create_aggregator(1) for name in params}
        for name, tensor in params.items():
            aggregators[name].check({name: _materialized(tensor)}, weight, client)
        self._is_partially_folded = True  # until all tensors are folded; an exception leaves it set
        for name, tensor in params.items():
            aggregators[name].add({name: _materialized(tensor)}, weight, client)
        self._tensor_aggregators, self._is_partially_folded = aggregators, False

    def _finish_round(self) -> dict[str, Any]:
        if self._round.is_lazy:
            return {name: aggregator.finish()[name] for name, aggregator in self._tensor_aggregators.items()}
        try:
            return (self._aggregator or self._create_aggregator(self.group)).finish()
        finally:
            self._drop_rejected()

    def _require_consistent(self) -> None:
        """Raise `AggregationError` if tensors of a result are folded and others are not."""
        if self._is_partially_folded:
            raise AggregationError(
                "a result on disk could be read when it was checked, but not when it was folded: this round has no mean"
            )

    def _drop_rejected(self) -> None:
        """Remove and log accepted results whose values were found invalid when their group was folded."""
        for aggregator in self._aggregators():
            for error in aggregator.pop_rejected():
                self._round.discount(error.client)
                self._refuse(error)

    def _refuse(self, error: UpdateError) -> None:
        logger.error("refused: %s", error)
        self._round.refusals.append(str(error))

    def _params(self, model: FLModel, client: str) -> dict[str, Any]:
        if not isinstance(model.params, Mapping) or not model.params:
            raise TensorMismatch("its result has no parameters", client=client)
        excluded = re.compile(self.exclude_vars) if self.exclude_vars else None
        return {name: tensor for name, tensor in model.params.items() if not (excluded and excluded.search(str(name)))}

    def _weight(self, model: FLModel, client: str) -> Any:
        if self.rule == "unweighted_mean":
            return 1.0
        meta = model.meta or {}
        if FLMetaKey.NUM_STEPS_CURRENT_ROUND not in meta:
            raise WeightError(
                f'the meta of its result lacks "{FLMetaKey.NUM_STEPS_CURRENT_ROUND}" '
                '(rule="unweighted_mean" needs none)',
                client=client,
            )
        steps, factor = meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND], (self.aggregation_weights or {}).get(client)
        return steps if factor is None or not is_number(steps) else float(steps) * factor


def _materialized(tensor: Any) -> Any:
    materialize = getattr(tensor, "materialize", None)
    return materialize() if callable(materialize) else tensor
