"""The parameters of the transport benchmark: size of pieces, window, and connections."""

import importlib
from dataclasses import dataclass

from flcore_transport import WINDOW_PIECES
from flcore_transport.piece_format import MAX_PIECE_BYTES, PIECE_BODY_BYTES

TUNED_CONSTANTS = {
    "piece": ("flcore_transport.pieces", "PIECE_BODY_BYTES"),
    "window": ("flcore_transport.flow_control", "WINDOW_PIECES"),
}
"""The module and constant that each parameter sets."""


@dataclass(frozen=True)
class Tuning:
    """Bytes of a full piece, pieces in flight, and parallel connections."""

    piece: int = PIECE_BODY_BYTES
    window: int = WINDOW_PIECES
    connections: int = 1

    def apply(self) -> None:
        """Set this process's transport to these parameters. For trials only: the protocol has one piece size."""
        if not 1024 <= self.piece < MAX_PIECE_BYTES or self.piece % 1024:
            raise ValueError(f"a piece has a multiple of 1,024 bytes, less than {MAX_PIECE_BYTES}, not {self.piece}")
        for name, (module, constant) in TUNED_CONSTANTS.items():
            if not hasattr(importlib.import_module(module), constant):
                raise RuntimeError(f"{module} has no {constant} any more: update TUNED_CONSTANTS")
            setattr(importlib.import_module(module), constant, getattr(self, name))
