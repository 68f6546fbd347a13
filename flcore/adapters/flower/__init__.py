"""flcore inside Flower: strategies with flcore's mean, and a grid that yields replies as they arrive.

For Flower's Message API (`flwr.serverapp`). `FedAvg` replaces Flower's. `FlcoreMean` is a mixin for other strategies
that build on FedAvg (`class FedAdam(flwr.serverapp.strategy.FedAdam, FlcoreMean)`). With `StreamingGrid`, the memory of
a ServerApp does not grow with the number of clients.
"""

from flcore.adapters.flower.grid import StreamingGrid
from flcore.adapters.flower.strategy import FedAvg, FlcoreMean

__all__ = ["FedAvg", "FlcoreMean", "StreamingGrid"]
