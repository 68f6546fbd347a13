"""A target of the fuzzer: a decoder, valid inputs for it, and how they are mutated."""

import json
import random
from typing import Any, Protocol


class NotCanonical(AssertionError):
    """An input was accepted that the encoder would not have written."""


class Target(Protocol):
    """A decoder under test.

    Attributes:
        name: The name in reports.
        share: The inputs of this target for each 1,000 pieces, messages and contents.
        cases: The number of valid inputs.
    """

    name: str
    share: int
    cases: int

    def make(self, draw: random.Random, case: int) -> bytes:
        """Return an input: a mutation of the valid input `case`, or sometimes that input itself."""
        ...

    def feed(self, case: int, data: bytes) -> None:
        """Decode an input; raise a `FlcoreError` if it is refused, `NotCanonical` if it should have been."""
        ...


def require(holds: bool, fault: str) -> None:
    """Raise `NotCanonical` unless a property of an accepted input holds."""
    if not holds:
        raise NotCanonical(fault)


def strict_json(data: bytes | str) -> Any:
    """Parse JSON independently of pydantic, or raise `NotCanonical` where it is ambiguous."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), f"a key stands twice among {[key for key, _ in pairs][:5]}")
        return dict(pairs)

    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"it is no JSON: {error}") from error
