"""flcore inside Flower: a strategy that combines replies by any rule, and a grid that yields replies as they arrive.

For Flower's Message API (`flwr.serverapp`). `FlcoreStrategy(rule="median")` is a strategy by itself, and a mixin for
strategies that build on FedAvg (`class FedAdam(flwr.serverapp.strategy.FedAdam, FlcoreStrategy)`). `FedAvg` is the same
under Flower's name. With `StreamingGrid` and a rule that is a sum, such as a mean, the memory of a ServerApp does not
grow with the number of clients.
"""

from flcore.adapters.flower.grid import StreamingGrid
from flcore.adapters.flower.strategy import FedAvg, FlcoreMean, FlcoreStrategy

__all__ = ["FedAvg", "FlcoreMean", "FlcoreStrategy", "StreamingGrid"]
"""`FlcoreMean` is the former name of `FlcoreStrategy`."""
