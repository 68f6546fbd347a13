"""The result of a check."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flcore.disk_errors import ADVICE
from flcore.errors import FlcoreError
from flcore.text import printable

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
        except OSError as error:
            file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            found = ": ".join(filter(None, (printable(file), error.strerror or str(error))))
            advice = ADVICE.get(error.errno or 0, "give another path, or correct this one")
            results.append(CheckResult(name, "failed", found, advice))
        except FlcoreError as error:
            results.append(of_error(name, error))
    return results


def of_error(name: str, error: FlcoreError) -> CheckResult:
    """Return the result of a check that has ended with an error of flcore's, whose last part says what to do."""
    found, _, advice = printable(str(error), 1_000).rpartition("; ")
    return CheckResult(name, "failed", found or advice, advice if found else "correct what the error names")
