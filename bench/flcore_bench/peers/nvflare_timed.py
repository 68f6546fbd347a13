"""NVFLARE's mean and flcore's, as aggregators that write into the log how long each took of a round."""

import time
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore.adapters.nvflare import FlcoreAggregator

TOLD = "seconds in aggregation: "


class OwnMean(ModelAggregator):  # type: ignore[misc]  # it has a type only where NVFLARE is installed
    """What NVFLARE's FedAvg does without an aggregator."""

    def __init__(self) -> None:
        super().__init__()
        self._helper = WeightedAggregationHelper()
        self._kind: Any = None

    def accept_model(self, model: FLModel) -> None:
        """Add a model to the sum."""
        self._kind = model.params_type
        meta = model.meta
        self._helper.add(model.params, meta["NUM_STEPS_CURRENT_ROUND"], meta["client_name"], model.current_round)

    def aggregate_model(self) -> FLModel:
        """Divide."""
        return FLModel(params=self._helper.get_result(), params_type=self._kind)

    def reset_stats(self) -> None:
        """Begin anew."""
        self._helper.reset_stats()


def timed(base: Any) -> Any:
    """Return an aggregator that notes how long it works."""

    class Timed(base):  # type: ignore[misc]
        seconds = 0.0

        def accept_model(self, model: FLModel) -> None:
            began = time.monotonic()
            super().accept_model(model)
            self.seconds += time.monotonic() - began

        def aggregate_model(self) -> FLModel:
            began = time.monotonic()
            model = super().aggregate_model()
            self.logger.info(f"{TOLD}{self.seconds + time.monotonic() - began:.6f}")
            self.seconds = 0.0
            return model

    return Timed


class TimedOwnMean(timed(OwnMean)):  # type: ignore[misc]
    """NVFLARE's."""


class TimedFlcoreAggregator(timed(FlcoreAggregator)):  # type: ignore[misc]
    """flcore's."""

    def __init__(self, accumulate: str = "exact") -> None:
        super().__init__(accumulate=accumulate)
