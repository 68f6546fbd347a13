"""JSON from files that somebody else may have written: one object, read to the letter."""

import json
from pathlib import Path
from typing import Any

from flcore.errors import SpecError
from flcore.text import decode_text


def parse_object(data: bytes | bytearray, path: Path) -> dict[str, Any]:
    """Parse UTF-8 JSON that is one object; keys that appear twice, in any object, are refused.

    `path` is the file that errors name. Raises `SpecError`.

    >>> parse_object(b'{"a": 1, "a": 2}', Path("x.json"))
    Traceback (most recent call last):
    flcore.errors.SpecError: x.json: 'a' appears twice
    """
    try:
        content = json.loads(decode_text(data), object_pairs_hook=_unique)
    except _Twice as error:
        raise SpecError(f"{path}: {error.args[0]!r} appears twice") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can hold: JSON's escapes can spell half a character.

    >>> is_text("é"), is_text("\\ud800"), is_text(3)
    (True, False, False)
    """
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return content
