"""The result of a check."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flcore.errors import FlcoreError

Outcome = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class CheckResult:
    """What a check has found.

    Attributes:
        name: The check's name.
        outcome: "ok"; "warning": flcore works, but slowly, or not for long; "failed": something does not work.
        found: What was found, with its unit.
        advice: What to do; empty if nothing.
    """

    name: str
    outcome: Outcome
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


Check = tuple[str, Callable[[], CheckResult]]
"""A check's name, for a result if it cannot run, and the check."""


def run_checks(checks: Sequence[Check]) -> list[CheckResult]:
    """Run checks in order. One that cannot run has failed, and the others run nevertheless."""
    results = list[CheckResult]()
    for name, check in checks:
        try:
            results.append(check())
        except (OSError, FlcoreError) as error:
            results.append(CheckResult(name, "failed", f"{type(error).__name__}: {error}", "see the error's text"))
    return results
