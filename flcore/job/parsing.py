"""Parsing a contract. An error lists everything that is wrong with it, each with its key."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from flcore.errors import JobError
from flcore.job.contract import Contract, TaskContract
from flcore.text import nearest_name

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
        JobError: A key is unknown or missing, or a value is invalid. The error has a line for each, and one for all
            missing keys.
    """
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(
            f"{source}: expected values that JSON can hold, got a date, a NaN or an infinity: {error}"
        ) from error
    except RecursionError as error:
        raise JobError(f"{source}: expected tables in a few levels, got too many: {error}") from error
    return contract_from_json(text, source)


def contract_from_json(text: str | bytes, source: str) -> Contract:
    """Validate a contract as JSON, which is how it travels (see `parse_contract`)."""
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        details = error.errors()
        missing = [_key(detail["loc"]) for detail in details if detail["type"] == "missing"]
        if len(missing) > 1:
            details = [detail for detail in details if detail["type"] != "missing"]
        lines = [_explain(detail["loc"], detail["msg"], detail["input"]) for detail in details]
        if len(missing) > 1:
            lines.insert(0, f"expected the keys {', '.join(missing)}, which are missing; docs/job.md describes them")
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from error


def _key(location: tuple[int | str, ...]) -> str:
    # For a union such as `clients`, pydantic puts the name of the alternative into the location.
    return ".".join(
        str(part) for part in location if part not in ("constrained-int", "int", "tuple[constrained-str, ...]")
    )


def _explain(location: tuple[int | str, ...], message: str, value: Any) -> str:
    key = _key(location)
    text = message.removeprefix("Value error, ")
    if text.startswith("Extra inputs"):
        renamed = f"; it is called {RENAMED_KEYS[key]} now" if key in RENAMED_KEYS else _nearest_key(key)
        return f"{key}: there is no such key{renamed}"
    is_told = isinstance(value, dict) or repr(value) in text
    shown = "" if is_told else f", not {value!r}"
    return f"{key or 'job'}: {text[0].lower()}{text[1:]}{shown}"


def _nearest_key(key: str) -> str:
    """Return the end of an error about an unknown key: this key in another table, else the nearest one of its table."""
    table, _, name = key.rpartition(".")
    task = table.partition(".")[2] if table.startswith("tasks.") else "train"
    known = [each.rpartition(".") for each in (*_keys(Contract), *_keys(TaskContract, f"tasks.{task}."))]
    elsewhere = [place for place, _, last in known if last == name]
    beside = [last for place, _, last in known if place == table]
    place, nearest = (elsewhere[0], name) if elsewhere else (table, nearest_name(name, beside))
    if nearest is None:
        return ""
    meant = f"{place}.{nearest}" if place else nearest
    return f"; did you mean {meant!r}?"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
