"""JSON that has one meaning: UTF-8, and no object with a key twice."""

import json
import math
from typing import Any

from flcore.text import decode_text


class DuplicateKey(ValueError):
    """An object has a key twice; parsers disagree on which value counts. Its first argument is the key."""

    def __str__(self) -> str:
        return f"{self.args[0]!r} appears twice"


def parse_json(data: bytes | bytearray) -> Any:
    """Parse UTF-8 JSON, with or without a byte order mark.

    Args:
        data: The JSON.

    Returns:
        The value.

    Raises:
        DuplicateKey: An object has a key twice.
        ValueError: The data is not UTF-8 or not JSON, or it is nested too deeply.

    >>> parse_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    flcore.strict_json.DuplicateKey: 'a' appears twice
    """
    try:
        return json.loads(decode_text(data), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"it is nested too deeply: {error}") from error


def dump_json(value: Any) -> str:
    """Return a value as JSON. A number that is not finite is null, as JSON has none.

    >>> dump_json({"loss": math.nan, "rounds": (1, 2.5)})
    '{"loss": null, "rounds": [1, 2.5]}'
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        raise DuplicateKey(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return content
