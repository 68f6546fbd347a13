"""Reading a contract, and saying of everything that is wrong with it where it stands."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from flcore.errors import JobError
from flcore.job.contract import Contract

RENAMED_KEYS = {"server.controller": "server.workflow", "server.playbook": "server.workflow"}
"""Keys of job.toml that have another name now."""


def parse_contract(content: Mapping[str, Any], source: str) -> Contract:
    """Return the contract that `content` says, or raise `JobError` with every place that is wrong."""
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(f"{source}: a value that JSON cannot hold (a date, NaN or an infinity): {error}") from error
    return contract_from_json(text, source)


def contract_from_json(text: str | bytes, source: str) -> Contract:
    """Return the contract that a JSON text says, or raise `JobError` with every place that is wrong."""
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        lines = [_explain(detail["loc"], detail["msg"], detail["input"]) for detail in error.errors()]
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from error


def _explain(place: tuple[int | str, ...], message: str, value: Any) -> str:
    key = ".".join(str(part) for part in place if part not in ("constrained-int", "int", "tuple[constrained-str, ...]"))
    text = message.removeprefix("Value error, ")
    if text.startswith("Extra inputs"):
        renamed = f"; it is called {RENAMED_KEYS[key]} now" if key in RENAMED_KEYS else ""
        return f"{key}: there is no such key{renamed}"
    shown = "" if isinstance(value, dict) else f", not {value!r}"
    return f"{key or 'job'}: {text[0].lower()}{text[1:]}{shown}"
