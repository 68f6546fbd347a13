"""What the transport benchmark can vary: how large pieces are, how far they go ahead, over how many connections."""

import importlib
from dataclasses import dataclass

from flcore_transport import MAX_PIECE_BYTES, PIECE_BODY_BYTES, WINDOW_PIECES

PLACES = {
    "piece": ("flcore_transport.pieces", "PIECE_BODY_BYTES"),
    "window": ("flcore_transport.windows", "WINDOW_PIECES"),
}
"""The constants of the transport that are set, as modules know them."""


@dataclass(frozen=True)
class Tuning:
    """Bytes of a full piece, how many pieces may go ahead of what the server has taken, and connections at once."""

    piece: int = PIECE_BODY_BYTES
    window: int = WINDOW_PIECES
    connections: int = 1

    def apply(self) -> None:
        """Set this process's transport to it. For trials: the protocol has one piece size."""
        if not 1024 <= self.piece < MAX_PIECE_BYTES or self.piece % 1024:
            raise ValueError(f"a piece has a multiple of 1,024 bytes, less than {MAX_PIECE_BYTES}, not {self.piece}")
        for name, (module, constant) in PLACES.items():
            if not hasattr(importlib.import_module(module), constant):
                raise RuntimeError(f"{module} has no {constant} any more: it is time to change PLACES")
            setattr(importlib.import_module(module), constant, getattr(self, name))
