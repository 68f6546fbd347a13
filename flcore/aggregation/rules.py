"""The table of aggregation rules. A rule is a value; adding one is a factory here and a row in `RULES`."""

from collections.abc import Callable
from dataclasses import dataclass

from flcore.errors import JobError


@dataclass(frozen=True)
class Rule:
    """A rule that folds: an update enters the total times its coefficient, and the total is divided by their sum."""

    name: str
    coefficient: Callable[[float], float]


def mean() -> Rule:
    """Each update counts by its weight, usually its number of examples (FedAvg; McMahan et al., 2017)."""
    return Rule("mean", lambda weight: weight)


def unweighted_mean() -> Rule:
    """Each update counts the same, whatever its weight."""
    return Rule("unweighted_mean", lambda _: 1.0)


RULES: dict[str, Callable[[], Rule]] = {"mean": mean, "unweighted_mean": unweighted_mean}
"""Every rule, by the name that a job and the command line give it."""


def rule_named(name: str) -> Rule:
    """Return the rule called `name`, or raise `JobError`.

    >>> rule_named("mean").coefficient(120.0)
    120.0
    """
    if name not in RULES:
        raise JobError(f"rule {name!r} does not exist; expected one of {', '.join(RULES)}")
    return RULES[name]()
