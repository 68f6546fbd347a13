"""Strict JSON as the content of a message, parsed within bounds. It imports neither models nor contracts.

White space, the order of keys and left-out defaults are free. A key that appears twice is refused.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flcore.errors import FlcoreError
from flcore.strict_json import parse_json

MAX_EXPLAINED_ERRORS = 64
"""Of a content with more errors, none is explained: pydantic explains all or none, at about 1 KB of memory each."""


class MalformedMessage(FlcoreError):
    """A message that this version does not understand."""

    kind = "malformed"


class Content(BaseModel):
    """The content of one message."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", populate_by_name=True
    )

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return self.model_dump_json(by_alias=True).encode()


ContentT = TypeVar("ContentT", bound=Content)


def parse_content(content_type: type[ContentT], content: bytes) -> ContentT:
    """Parse the content of a message, or raise `MalformedMessage`."""
    try:
        parsed = content_type.model_validate_json(content)
        if parsed.to_bytes() != content:  # flcore's own contents are equal, and cost no second parser
            _require_unambiguous(content_type, content)
        return parsed
    except ValidationError as error:
        raise MalformedMessage(f"{content_type.__name__}: {_explain(error)}") from error
    except ValueError as error:
        raise MalformedMessage(f"{content_type.__name__}: expected JSON with one meaning: {error}") from error


def _require_unambiguous(content_type: type[Content], content: bytes) -> None:
    """Raise `ValueError` if a key appears twice, or is a field's name in Python and not on the wire."""
    names = {field.serialization_alias or name for name, field in content_type.model_fields.items()}
    if unknown := parse_json(content).keys() - names:
        raise ValueError(f"{min(unknown)!r} is no key")


def _explain(error: ValidationError) -> str:
    if error.error_count() > MAX_EXPLAINED_ERRORS:
        return f"{error.error_count()} keys or values are not as expected"
    problem: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the message"
    return f"{place}: {problem['msg']}"
