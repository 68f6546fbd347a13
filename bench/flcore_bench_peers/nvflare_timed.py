"""NVFLARE aggregators with its own mean and with flcore's. They log the seconds per round in aggregation."""

import time
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from flcore.adapters.nvflare import FlcoreAggregator

LOG_PREFIX = "seconds in aggregation: "


class OwnMean(ModelAggregator):  # type: ignore[misc]  # it has a type only where NVFLARE is installed
    """The mean that NVFLARE's FedAvg computes without an aggregator."""

    def __init__(self) -> None:
        super().__init__()
        self._helper = WeightedAggregationHelper()
        self._params_type: Any = None

    def accept_model(self, model: FLModel) -> None:
        """Add a model to the sum."""
        self._params_type = model.params_type
        meta = model.meta
        self._helper.add(model.params, meta["NUM_STEPS_CURRENT_ROUND"], meta["client_name"], model.current_round)

    def aggregate_model(self) -> FLModel:
        """Return the mean."""
        return FLModel(params=self._helper.get_result(), params_type=self._params_type)

    def reset_stats(self) -> None:
        """Reset the sum."""
        self._helper.reset_stats()


def timed(base: Any) -> Any:
    """Return a subclass of an aggregator that logs the seconds it worked in a round."""

    class Timed(base):  # type: ignore[misc]
        seconds = 0.0

        def accept_model(self, model: FLModel) -> None:
            began = time.monotonic()
            super().accept_model(model)
            self.seconds += time.monotonic() - began

        def aggregate_model(self) -> FLModel:
            began = time.monotonic()
            model = super().aggregate_model()
            self.logger.info(f"{LOG_PREFIX}{self.seconds + time.monotonic() - began:.6f}")
            self.seconds = 0.0
            return model

    return Timed


class TimedOwnMean(timed(OwnMean)):  # type: ignore[misc]
    """NVFLARE's own mean, timed."""


class TimedFlcoreAggregator(timed(FlcoreAggregator)):  # type: ignore[misc]
    """flcore's adapter, timed."""

    def __init__(self, accumulate: str = "exact") -> None:
        super().__init__(accumulate=accumulate)
