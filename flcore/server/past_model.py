"""A global model that a workflow made before the server was restarted.

A restarted server runs its workflow again from the start, and answers the calls of finished rounds from its record. The
models of those rounds are not stored, but for the one that was published last and the checkpoints. The workflow gets
handles, which it may pass to the controller as before.
"""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from flcore_layout import Layout, SegmentRange
from flcore_transport import Buffer

from flcore.errors import ModelGone
from flcore.model.arrays import AnyArrays
from flcore.model.chunks import GlobalModel
from flcore.model.model import payload_layout
from flcore.model.spec import ModelSpec


class PastModel:
    """A handle of a model. A `GlobalModel` that can be read if `tie` was called, else it raises `ModelGone`."""

    def __init__(self, spec: ModelSpec, round_number: int) -> None:
        self.spec, self._round = spec, round_number
        self._open: Callable[[], GlobalModel] | None = None
        self._model: GlobalModel | None = None

    def tie(self, open_published: Callable[[], GlobalModel]) -> None:
        """The model was published, and can be opened."""
        self._open = open_published

    @property
    def layout(self) -> Layout:
        """The layout of the model's payload."""
        return payload_layout(self.spec)

    def stored(self) -> GlobalModel:
        """Return the stored model, opened on first access, or raise `ModelGone`."""
        if self._model is None:
            if self._open is None:
                raise ModelGone(
                    f"the model of round {self._round} was made before the server was restarted, and is not stored: "
                    "after a restart, the model that was published last and the checkpoints (server.checkpoint_every) "
                    "can be read. A workflow that needs more keeps it in `control.state`"
                )
            self._model = self._open()
        return self._model

    def chunk(self, segment: int, first: int, stop: int) -> npt.NDArray[Any]:
        """Read a chunk (see `ChunkSource`)."""
        return self.stored().chunk(segment, first, stop)

    def read(self, range_: SegmentRange) -> list[Buffer]:
        """Return the bytes of a range."""
        return self.stored().read(range_)

    def arrays(self, like: AnyArrays | None = None) -> dict[str, Any]:
        """Return the arrays by name (see `GlobalModel`)."""
        return self.stored().arrays(like)
