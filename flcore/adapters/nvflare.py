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

from flcore_kernels import backend as backend_named
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLMetaKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from flcore.adapters.nvflare_on_disk import DiskAggregator
from flcore.adapters.nvflare_round import RoundResults, is_number
from flcore.adapters.nvflare_tensors import is_reference
from flcore.aggregation.admission_limits import AggregationSettings
from flcore.aggregation.incremental import IncrementalAggregator, require_settings
from flcore.errors import AggregationError, JobError, QuorumError, TensorMismatch, UpdateError, WeightError
from flcore.rules.kinds import Rule, Sum
from flcore.rules.named import resolve_rule

logger = logging.getLogger(__name__)


class FlcoreAggregator(ModelAggregator):  # type: ignore[misc]  # mypy runs without NVFLARE
    """Combines the results of a round by any rule of flcore: by default the mean of FedAvg (McMahan et al., 2017).

    The weight of a result is the `NUM_STEPS_CURRENT_ROUND` of its meta, a finite number >= 0, times its client's entry
    in `aggregation_weights`. All results of a job have the tensors of the first one: the same names, shapes and dtypes.
    All results of a round are full weights, or all are differences, and a rule sees them as they are. Any other result
    is refused with an `UpdateError` that names the client and the tensor. NVFLARE logs it, and the round continues
    without this result.

    Memory, for N results of M bytes with P parameters, beside the model that is returned:

    - A rule that is a sum (`flcore.Sum`, such as a mean) folds results as they arrive: `group` · M, and a total of 4
      (with float32 sums in memory: 8), 8 or 16 · P bytes.
    - Any other rule (`flcore.Columns`, `flcore.Geometry`) keeps references to all results until the round's end:
      N · M, and at most 4 · 2^19 elements per result while ranges are combined.
    - References to tensors on disk (`enable_tensor_disk_offload`) are read in ranges: see `DiskAggregator`. Then no
      rule takes memory that grows with N; the files stay on the disk as long as their references are kept.

    Args:
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        rule: A name, such as "mean" (default) or "trimmed_mean(f=2)" (see `flcore.RULES`), or a rule. A job that is
            exported needs a name.
        weighted: Whether results have the weights of their steps. With False, all have the weight 1 and need no number
            of steps, as with the rule "unweighted_mean". Default: True.
        group: The number of results in memory that a sum holds and folds in one pass, >= 1. More is faster and takes
            more memory. Default: 1.
        max_abs: The largest magnitude of an element. Default: None, no bound but that of the dtype.
        exclude_vars: A regular expression; tensors whose name it finds are left out. Default: None, all tensors count.
        aggregation_weights: A factor for the weight by client, finite and >= 0; 1 for a client without an entry.
            Default: None.
        average_bytes: Average unsigned bytes. By default, they must be equal to those of the first result.

    Raises:
        JobError: A setting is invalid for every round.

    Example:
        >>> recipe = FedAvgRecipe(aggregator=FlcoreAggregator(group=4), ...)  # doctest: +SKIP
        >>> recipe = FedAvgRecipe(aggregator=FlcoreAggregator(rule="median"), ...)  # doctest: +SKIP
    """

    def __init__(
        self,
        accumulate: str = "exact",
        rule: str | Rule = "mean",
        group: int = 1,
        max_abs: float | None = None,
        exclude_vars: str | None = None,
        aggregation_weights: dict[str, float] | None = None,
        average_bytes: bool = False,
        weighted: bool = True,
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
        self.average_bytes, self.weighted = average_bytes, weighted
        self._rule = resolve_rule(rule)
        # A rule does not say whether it ignores weights. Of this one, it is known.
        self._needs_steps = weighted and self._rule.name != "unweighted_mean"
        self._lock = threading.Lock()
        self._round = RoundResults()
        self._aggregator: IncrementalAggregator | None = None
        self._disk_aggregator: DiskAggregator | None = None

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
                is_on_disk = any(map(is_reference, params.values()))
                self._round.require_same_kind(model, is_on_disk, client)
                if is_on_disk:
                    self._disk_aggregator = self._disk_aggregator or self._create_disk_aggregator()
                    self._disk_aggregator.add(params, weight, client)
                else:
                    self._add(params, weight, client)
            except UpdateError as error:
                self._refuse(error)
                raise
            self._round.count(model, is_on_disk, weight, client)

    def aggregate_model(self) -> FLModel:
        """Return the combination of the round's results, and start the next one.

        Returns:
            The combined model, and the weighted means of the metrics.

        Raises:
            QuorumError: No result counts.
            WeightError: All weights are zero.
            AggregationError: A dtype cannot hold the result, the rule needs more results, or a result was folded in
                part.
        """
        with self._lock:
            self._require_consistent()
            try:
                params = self._finish_round()
                return FLModel(params=params, params_type=self._round.kind, metrics=self._round.metrics())
            except (QuorumError, AggregationError) as error:
                if not self._round.refusals:
                    raise
                raise type(error)(f"{error}; the first refusal: {self._round.refusals[0]}") from None
            finally:
                self._round = RoundResults()

    def reset_stats(self) -> None:
        """Discard the results of the round. The names, shapes and dtypes of the job's tensors stay known."""
        with self._lock:
            self._round = RoundResults()
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
        """Log the settings at the start of a run."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            self.log_info(fl_ctx, f"flcore combines: {self._rule.name}, {self.accumulate}, {self.group} at once")

    def _create_aggregator(self) -> IncrementalAggregator:
        return IncrementalAggregator(
            rule=self._rule,
            accumulate=self.accumulate,
            group=self.group,
            max_abs=math.inf if self.max_abs is None else self.max_abs,
            double_buffer=True,
            average_bytes=self.average_bytes,
        )

    def _create_disk_aggregator(self) -> DiskAggregator:
        max_abs = math.inf if self.max_abs is None else self.max_abs
        return DiskAggregator(
            AggregationSettings(self._rule, self.accumulate, backend_named(), self.average_bytes, max_abs)
        )

    def _aggregators(self) -> list[IncrementalAggregator | DiskAggregator]:
        return [aggregator for aggregator in (self._aggregator, self._disk_aggregator) if aggregator is not None]

    def _add(self, params: Mapping[str, Any], weight: float, client: str) -> None:
        """Add tensors that are in memory."""
        aggregator = self._aggregator or self._create_aggregator()
        is_held = self.group > 1 or not isinstance(self._rule, Sum)
        if is_held and not self._round.has_results:
            # The first result decides between weights and differences, so it is checked before it is held.
            aggregator.check(params, weight, client)
        try:
            aggregator.add(params, weight, client)
            self._aggregator = aggregator
        finally:
            self._drop_rejected()

    def _finish_round(self) -> dict[str, Any]:
        on_disk = self._disk_aggregator if self._round.is_on_disk else None
        try:
            return (on_disk or self._aggregator or self._create_aggregator()).finish()
        finally:
            self._drop_rejected()

    def _require_consistent(self) -> None:
        """Raise `AggregationError` if a result on disk is folded in part."""
        if self._disk_aggregator is not None:
            self._disk_aggregator.require_consistent()

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
        if not self._needs_steps:
            return 1.0
        meta = model.meta or {}
        if FLMetaKey.NUM_STEPS_CURRENT_ROUND not in meta:
            raise WeightError(
                f'the meta of its result lacks "{FLMetaKey.NUM_STEPS_CURRENT_ROUND}" (weighted=False needs none)',
                client=client,
            )
        steps, factor = meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND], (self.aggregation_weights or {}).get(client)
        return steps if factor is None or not is_number(steps) else float(steps) * factor
