"""The contents of the transport's messages between a server and its clients, as strict JSON.

All content from the other end is parsed here, within bounds, and nowhere else.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from flcore.errors import FlcoreError
from flcore.job.contract import Hyperparameters
from flcore.model.spec import ModelSpec, TensorSpec

MAX_METRIC_NAME = 128
"""In characters."""

Metrics = dict[str, JsonValue]
"""Metrics as a client sent them. An invalid metric is dropped, and its update counts (`flcore.server.uploads`)."""


class MalformedMessage(FlcoreError):
    """A message that this version does not understand."""

    kind = "malformed"


class _Content(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", populate_by_name=True
    )

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return self.model_dump_json(by_alias=True).encode()


class JoinContent(_Content):
    """Content of a join, client to server: the client's contract, and the digest of its job's code."""

    contract: str
    code_digest: str
    version: str


Tensors = Annotated[list[tuple[str, str, Annotated[list[int], Field(max_length=64)]]], Field(max_length=1_000_000)]
"""A `ModelSpec` on the wire: name, dtype and shape of each tensor."""


class WelcomeContent(_Content):
    """Content of a welcome, server to client: the tensors of the global model."""

    tensors: Tensors
    code_digest: str
    version: str


class TaskContent(_Content):
    """Content of an assignment, server to client: the task to run, and its round."""

    task: str
    round: int
    rounds: int
    seed: int
    hyperparameters: Hyperparameters


class AnswerContent(_Content):
    """Content of an upload request, client to server: everything of an answer but the elements of its tensors.

    Attributes:
        returns: The kind of the answer.
        upload_id: A random id, new for each answer. The server identifies an upload by the digest of this content, so
            only the process that began an upload can resume it.
        weight: The weight of the update and its metrics.
        metrics: The metrics.
        spec_fingerprint: The fingerprint of the update's `ModelSpec`; empty for an answer of metrics alone.
        tensors: None if the update has the tensors of the welcome. Else the update's own tensors, so that the server
            can name the difference in its refusal.
    """

    returns: Literal["weights", "delta", "metrics"]
    # Two fields keep the names that they had on the wire in earlier versions.
    upload_id: str = Field(default="", max_length=64, validation_alias="attempt", serialization_alias="attempt")
    weight: float
    metrics: Metrics = Field(default_factory=dict)
    spec_fingerprint: str = Field(default="", validation_alias="fingerprint", serialization_alias="fingerprint")
    tensors: Tensors | None = None


ContentT = TypeVar("ContentT", bound=_Content)


def parse_content(content_type: type[ContentT], content: bytes) -> ContentT:
    """Parse the content of a message, or raise `MalformedMessage`."""
    try:
        return content_type.model_validate_json(content)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the message"
        raise MalformedMessage(f"{content_type.__name__}: {place}: {problem['msg']}") from error


def encode_tensors(spec: ModelSpec) -> Tensors:
    """Return a spec in its form on the wire."""
    return [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in spec.tensors]


def decode_spec(tensors: Tensors) -> ModelSpec:
    """Return the spec of tensors from the wire, or raise `SpecError`."""
    return ModelSpec(tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in tensors))
