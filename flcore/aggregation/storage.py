"""Where updates are staged and results are written: shared by all aggregations of a server."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flcore_transport.piece_format import PIECE_BODY_BYTES

from flcore.aggregation.kept_staging import KeptStaging
from flcore.aggregation.staging import Staging
from flcore.model.chunks import ChunkSource, GlobalModel, ModelSink, copy_chunks
from flcore.model.model import Model
from flcore.model.spec import ModelSpec

MAX_READ_CHUNKS = 16
"""The largest number of chunks from disk that are combined at once. More are not faster."""


@dataclass(frozen=True)
class Storage:
    """The plan, where updates are staged, and where results are written.

    Args:
        plan: A key of `PLANS`. Default: "batch".
        staging: The staging of updates. Default: in memory, without a bound.
        create_model: Creates the model that a result is written into. Default: one in memory.
        create_state: Creates the model that the state of a server optimizer is written into. Default: one in memory.
        read_chunks: How many chunks are read from disk at once, while as many are combined. Default: 16.
    """

    plan: str = "batch"
    staging: Staging | KeptStaging = field(default_factory=Staging)
    create_model: Callable[[ModelSpec], ModelSink] = Model
    read_chunks: int = MAX_READ_CHUNKS
    create_state: Callable[[ModelSpec], ModelSink] = Model

    def copy_model(self, source: ChunkSource) -> GlobalModel:
        """Return a copy of a model, created by `create_model`."""
        with self.create_model(source.spec) as target:
            copy_chunks(source, target)
            return target.commit()


def read_chunks_within(working_bytes: int) -> int:
    """Return how many chunks may be read at once within a budget's working memory.

    Half of it is for the chunks that are combined, half for those that are read meanwhile.

    >>> read_chunks_within(8 << 20)
    2
    """
    return max(1, min(MAX_READ_CHUNKS, working_bytes // (2 * PIECE_BODY_BYTES)))
