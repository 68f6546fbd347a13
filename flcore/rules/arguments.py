"""Checks of the arguments of rules, which may come from a job's file or a command line."""

import math
from typing import Any

from flcore.errors import JobError


def require_bool(rule: str, name: str, value: Any) -> bool:
    """Return a value, or raise `JobError` unless it is true or false."""
    if not isinstance(value, bool):
        raise JobError(f"{rule}: {name} is true or false, got {value!r}")
    return value


def require_count(rule: str, name: str, value: Any, least: int = 1) -> int:
    """Return a value, or raise `JobError` unless it is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise JobError(f"{rule}: {name} is a whole number of at least {least}, got {value!r}")
    return value


def require_number(rule: str, name: str, value: Any, *, above: float, most: float = math.inf) -> float:
    """Return a value as a float, or raise `JobError` unless it is finite, above one bound and at most another one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not above < value <= most or not math.isfinite(value):
        limits = f"above {above:g}" if most == math.inf else f"above {above:g} and at most {most:g}"
        raise JobError(f"{rule}: {name} is a number {limits}, got {value!r}")
    return float(value)
