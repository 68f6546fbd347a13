"""A status as JSON, from a file or from a server: parsed within bounds, and refused if it is anything else."""

from functools import cache
from typing import Any, Literal, overload

from pydantic import TypeAdapter, ValidationError

from flcore.errors import FlcoreError
from flcore.job.content import MAX_EXPLAINED_ERRORS
from flcore.status.job_status import FederationStatus, JobStatus
from flcore.strict_json import parse_json
from flcore.text import printable

MAX_STATUS_BYTES = 16 << 20
"""A larger status is none that a server has written."""


class MalformedStatus(FlcoreError):
    """A content that is no status of this version of flcore. The message names the place, and what was expected."""


@overload
def parse_status(kind: Literal["job"], content: bytes) -> JobStatus: ...


@overload
def parse_status(kind: Literal["federation"], content: bytes) -> FederationStatus: ...


def parse_status(kind: Literal["job", "federation"], content: bytes) -> JobStatus | FederationStatus:
    """Parse the JSON of a status.

    Args:
        kind: What it is the status of.
        content: The JSON that `to_json` has given: UTF-8.

    Returns:
        The status.

    Raises:
        MalformedStatus: A key is unknown, missing or there twice; a value is of another type, negative, not finite or
            too large; or the content is larger than `MAX_STATUS_BYTES`, or no JSON.

    Example:
        >>> parse_status("job", b'{"job": "digits", "rounds": 3}').rounds
        3
        >>> parse_status("job", b'{"job": "digits", "rounds": -3}')
        Traceback (most recent call last):
        flcore.status.status_content.MalformedStatus: rounds: input should be greater than or equal to 0, got -3
    """
    if len(content) > MAX_STATUS_BYTES:
        raise MalformedStatus(f"expected at most {MAX_STATUS_BYTES:,} bytes, got more")
    try:
        parse_json(content)  # pydantic takes the last one of two equal keys
        status: JobStatus | FederationStatus = _adapter(kind).validate_json(content)
        return status
    except ValidationError as error:
        raise MalformedStatus(_explain(error)) from error
    except ValueError as error:
        raise MalformedStatus(f"expected JSON: {printable(str(error), 200)}") from error


@cache
def _adapter(kind: Literal["job", "federation"]) -> TypeAdapter[Any]:
    return TypeAdapter(JobStatus if kind == "job" else FederationStatus)


def _explain(error: ValidationError) -> str:
    """Return the first fault: its place, what was expected, and what came."""
    if error.error_count() > MAX_EXPLAINED_ERRORS:
        return f"{error.error_count():,} keys or values are not as expected"
    fault = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the status"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{printable(place, 100)}: there is no such key in this version of flcore"
    message = fault["msg"]
    got = "" if fault["type"] == "missing" else f", got {printable(repr(fault['input']), 60)}"
    return f"{printable(place, 100)}: {message[0].lower()}{message[1:]}{got}"
