"""Where updates are staged and new models are put: what all aggregations of a server share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flcore_transport.piece_format import PIECE_BODY_BYTES

from flcore.aggregation.staging import Staging
from flcore.model.chunks import ChunkSource, GlobalModel, ModelSink, copy_chunks
from flcore.model.model import Model
from flcore.model.spec import ModelSpec

MAX_READ_CHUNKS = 16
"""How many chunks from disk are combined in one pass: more of them do not make it faster."""


@dataclass(frozen=True)
class Storage:
    """A plan (a key of `PLANS`), where updates are staged, and where results go.

    `read_chunks` is how many chunks may be read from disk at once, while as many are being combined.
    """

    plan: str = "batch"
    staging: Staging = field(default_factory=Staging)
    create_model: Callable[[ModelSpec], ModelSink] = Model
    read_chunks: int = MAX_READ_CHUNKS

    def copy_model(self, source: ChunkSource) -> GlobalModel:
        """Return a copy of a model where the models of this storage are."""
        with self.create_model(source.spec) as target:
            copy_chunks(source, target)
            return target.commit()


def read_chunks_within(working_bytes: int) -> int:
    """Return how many chunks may be read at once within a budget's share for it.

    >>> read_chunks_within(8 << 20)
    2
    """
    return max(1, min(MAX_READ_CHUNKS, working_bytes // (2 * PIECE_BODY_BYTES)))
