"""What server and client say to each other about a job: the contents of the transport's messages, as strict JSON.

All messages of the peer are parsed here, within bounds, and nowhere else.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from flcore.errors import FlcoreError
from flcore.job.contract import Hyperparameters
from flcore.model.spec import ModelSpec, TensorSpec

MAX_METRIC_NAME = 128
"""Characters."""

Metrics = dict[str, JsonValue]
"""As a client sent them: what is no number costs the metric, and not the update (see `flcore.server.uploads`)."""


class MalformedMessage(FlcoreError):
    """A message that this version does not understand."""

    kind = "malformed"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return self.model_dump_json().encode()


class JoinContent(_Message):
    """Client to server: the contract that I hold, and the digest of the code beside it."""

    contract: str
    code_digest: str
    version: str


Tensors = Annotated[list[tuple[str, str, Annotated[list[int], Field(max_length=64)]]], Field(max_length=1_000_000)]
"""A `ModelSpec` on the wire."""


class WelcomeContent(_Message):
    """Server to client: the tensors of the global model."""

    tensors: Tensors
    code_digest: str
    version: str


class TaskContent(_Message):
    """Server to client: the task to do in this round."""

    task: str
    round: int
    rounds: int
    seed: int
    hyperparameters: Hyperparameters


class AnswerContent(_Message):
    """Client to server: the answer beside its pieces.

    `attempt` is drawn anew for each answer, so that an upload is resumed by the process that began it and no other.
    `tensors` is None if they are those of the welcome, and the client's own where they are not, so that the server can
    say what is wrong with them.
    """

    returns: Literal["weights", "delta", "metrics"]
    attempt: str = Field(default="", max_length=64)
    weight: float
    metrics: Metrics = Field(default_factory=dict)
    fingerprint: str = ""
    tensors: Tensors | None = None


M = TypeVar("M", bound=_Message)


def parse_content(kind: type[M], content: bytes) -> M:
    """Return the message that `content` holds, or raise `MalformedMessage`."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the message"
        raise MalformedMessage(f"{kind.__name__}: {place}: {problem['msg']}") from error


def encode_tensors(spec: ModelSpec) -> Tensors:
    """Return a spec as it travels."""
    return [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in spec.tensors]


def decode_spec(tensors: Tensors) -> ModelSpec:
    """Return the spec that travelled, or raise `SpecError`."""
    return ModelSpec(tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in tensors))
