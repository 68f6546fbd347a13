"""flcore inside Flower: strategies whose means flcore computes, and a grid that yields replies as they arrive.

For the Message API (`flwr.serverapp`). `FedAvg` replaces Flower's own; `FlcoreMean` is a mixin for others that
build on FedAvg (`class FedAdam(flwr.serverapp.strategy.FedAdam, FlcoreMean)`); with `StreamingGrid`, a
ServerApp's memory does not grow with its clients.
"""

from flcore.adapters.flower.grid import StreamingGrid
from flcore.adapters.flower.strategy import FedAvg, FlcoreMean

__all__ = ["FedAvg", "FlcoreMean", "StreamingGrid"]
