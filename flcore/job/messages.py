"""The contents of the transport's messages between a server and its clients, as strict JSON.

All content from the other end is parsed by `parse_content`, within bounds.
"""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from flcore.job.content import Content as Content
from flcore.job.content import MalformedMessage as MalformedMessage
from flcore.job.content import parse_content as parse_content
from flcore.job.contract import Hyperparameters
from flcore.model.spec import ModelSpec, TensorSpec

MAX_METRIC_NAME = 128
"""In characters."""

Metrics = dict[str, JsonValue]
"""Metrics as a client sent them. An invalid metric is dropped, and its update counts (`flcore.server.uploads`)."""


class JoinContent(Content):
    """Content of a join, client to server: the client's contract, and the digest of its job's code."""

    contract: str
    code_digest: str
    version: str


class AgentJoinContent(Content):
    """Content of the join of a site's agent with a standing federation."""

    version: str
    kind: Literal["agent"] = "agent"


_Shape = Annotated[list[int], Field(max_length=64, fail_fast=True)]
Tensors = Annotated[list[tuple[str, str, _Shape]], Field(max_length=1_000_000, fail_fast=True)]
"""A `ModelSpec` on the wire: name, dtype and shape of each tensor. The first wrong one ends the validation."""


class WelcomeContent(Content):
    """Content of a welcome, server to client: the tensors of the global model, and the id of the run."""

    tensors: Tensors
    code_digest: str
    version: str
    run: str = ""


class TaskContent(Content):
    """Content of an assignment, server to client: the task to run, and its round."""

    task: str
    round: int
    rounds: int
    seed: int
    hyperparameters: Hyperparameters


class AnswerContent(Content):
    """Content of an upload request, client to server: everything of an answer but the elements of its tensors.

    Attributes:
        returns: The kind of the answer.
        upload_id: A random id, new for each answer. The server identifies an upload by the digest of this content, so
            an upload is resumed only by the process that began it, or by one that has its state directory.
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


def encode_tensors(spec: ModelSpec) -> Tensors:
    """Return a spec in its form on the wire."""
    return [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in spec.tensors]


def decode_spec(tensors: Tensors) -> ModelSpec:
    """Return the spec of tensors from the wire, or raise `SpecError`."""
    return ModelSpec(tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in tensors))
