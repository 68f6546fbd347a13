"""flcore inside Flower: strategies whose means flcore computes, and a grid that hands replies on as they arrive.

For the Message API (`flwr.serverapp`). `FedAvg` stands in for Flower's own; `FlcoreMean` is mixed into others that
build on FedAvg (`class FedAdam(flwr.serverapp.strategy.FedAdam, FlcoreMean)`); `StreamingGrid` keeps a ServerApp's
memory from growing with its clients.
"""

from flcore.adapters.flower.grid import StreamingGrid
from flcore.adapters.flower.strategy import FedAvg, FlcoreMean

__all__ = ["FedAvg", "FlcoreMean", "StreamingGrid"]
