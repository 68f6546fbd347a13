"""Changes of a contract by dotted keys: `{"server.rounds": 20}`, or `server.rounds=20` on a command line.

Only keys that exist can be changed, in hyperparameters, too: a key that is misspelt would have no effect there.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from pydantic import JsonValue

from flcore.errors import JobError
from flcore.job.contract import Contract
from flcore.job.parsing import parse_contract
from flcore.text import printable

MAX_KEY, MAX_KEYS = 100, 1_000
"""The longest key, and the most keys, that are compared with a misspelt one: changes also come from other machines."""


def parse_change(text: str) -> tuple[str, JsonValue]:
    """Read a change as a command line gives it: a dotted key, an equals sign, and a value of TOML.

    A text that is no value of TOML is a string, so it needs no quotes.

    Returns:
        The key and the value.

    Raises:
        JobError: There is no key, or the value is one of TOML that JSON cannot hold.

    >>> parse_change("server.rounds=20"), parse_change("server.rule=unweighted_mean")
    (('server.rounds', 20), ('server.rule', 'unweighted_mean'))
    """
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    shown = repr(printable(text, 100))
    if not (equals and key and raw):
        raise JobError(f"a change: expected KEY=VALUE, such as server.rounds=20, got {shown}")
    try:
        content = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError) as error:
        if raw[0] in "[{\"'" or "\n" in raw:
            raise JobError(f"{key}: expected a value of TOML, got {printable(raw, 100)!r}: {error}") from error
        return key, raw
    if list(content) != ["value"]:
        raise JobError(f"a change: expected one key, got {shown}; give each change by itself")
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"{key}: expected a value that JSON can hold, got {printable(raw, 100)!r}: {error}") from error
    value: JsonValue = content["value"]
    return key, value


def change_contract(contract: Contract, changes: Mapping[str, Any]) -> Contract:
    """Return a contract with keys replaced.

    Args:
        contract: The contract.
        changes: Values by dotted key. Later ones win.

    Raises:
        JobError: There is no such key, or the changed contract is invalid.
    """
    if not changes:
        return contract
    content = json.loads(contract.to_json())
    for key, value in changes.items():
        _replace(content, key, value)
    return parse_contract(content, "the changed contract")


def _replace(content: dict[str, Any], key: str, value: JsonValue) -> None:
    """Replace the value of a key in a contract's JSON. A task may set a hyperparameter that it has from `client`."""
    *tables, last = key.split(".")
    table: Any = content
    for name in tables:
        table = table.get(name) if isinstance(table, dict) else None
    is_of_a_task = len(tables) == 3 and (tables[0], tables[2]) == ("tasks", "hyperparameters")
    if not isinstance(table, dict) or (last not in table and not (is_of_a_task and _is_of_client(content, last))):
        raise JobError(_explain_unknown(key, content))
    table[last] = value


def _is_of_client(content: Mapping[str, Any], name: str) -> bool:
    """Whether `client` has a hyperparameter. An earlier change may have put a value of another type in its place."""
    client = content["client"]
    hyperparameters = client.get("hyperparameters") if isinstance(client, dict) else None
    return isinstance(hyperparameters, dict) and name in hyperparameters


def _explain_unknown(key: str, content: Mapping[str, Any]) -> str:
    known = list(islice((name for name in _keys(content) if len(name) <= MAX_KEY), MAX_KEYS))
    same_name = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]  # `rounds` for one
    (nearest,) = get_close_matches(key[:MAX_KEY], same_name or known, n=1, cutoff=0.0)
    return f"{printable(key, MAX_KEY)}: expected a key of the job's contract; the nearest one is {nearest}"


def _keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
