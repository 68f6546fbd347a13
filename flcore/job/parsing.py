"""Parsing a contract. An error lists everything that is wrong with it, each with its key."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from flcore.errors import JobError
from flcore.job.contract import Contract

RENAMED_KEYS = {"server.controller": "server.workflow", "server.playbook": "server.workflow"}
"""Earlier names of keys of job.toml. They are refused with the present name."""


def parse_contract(content: Mapping[str, Any], source: str) -> Contract:
    """Validate the content of a job.toml.

    Args:
        content: The content, as parsed TOML.
        source: The file's name, for errors.

    Returns:
        The contract.

    Raises:
        JobError: A key is unknown or missing, or a value is invalid. The error has a line for each.
    """
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(
            f"{source}: expected values that JSON can hold, got a date, a NaN or an infinity: {error}"
        ) from error
    return contract_from_json(text, source)


def contract_from_json(text: str | bytes, source: str) -> Contract:
    """Validate a contract as JSON, which is how it travels (see `parse_contract`)."""
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        lines = [_explain(detail["loc"], detail["msg"], detail["input"]) for detail in error.errors()]
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from error


def _explain(location: tuple[int | str, ...], message: str, value: Any) -> str:
    # For a union such as `clients`, pydantic puts the name of the alternative into the location.
    key = ".".join(
        str(part) for part in location if part not in ("constrained-int", "int", "tuple[constrained-str, ...]")
    )
    text = message.removeprefix("Value error, ")
    if text.startswith("Extra inputs"):
        renamed = f"; it is called {RENAMED_KEYS[key]} now" if key in RENAMED_KEYS else ""
        return f"{key}: there is no such key{renamed}"
    shown = "" if isinstance(value, dict) else f", not {value!r}"
    return f"{key or 'job'}: {text[0].lower()}{text[1:]}{shown}"
