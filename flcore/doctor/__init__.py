"""Checks of what usually goes wrong on a machine (`flcore doctor`). Each is a function that returns a `CheckResult`."""

from flcore.doctor.result import CheckResult, Outcome, run_checks

__all__ = ["CheckResult", "Outcome", "run_checks"]
