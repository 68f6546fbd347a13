"""The rule that a job or a command line names: one of `RULES`, or code of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flcore.aggregation.rules import Rule, explain_unknown_rule, resolve_rule
from flcore.errors import JobError
from flcore.job.code import JobCode


def load_rule(rule: str, directory: Path, key: str) -> Rule:
    """Return the rule of a name, or what `file.py:name` refers to in a directory: see `rule_by_reference`."""
    return rule_by_reference(rule, lambda reference: JobCode(directory).load(reference, key), key)


def rule_by_reference(rule: str, load: Callable[[str], Any], key: str) -> Rule:
    """Return the rule of a name, or what `load` finds for `file.py:name`: a rule, or a function that makes one.

    `key` is what errors call the place where it was named. Raises `JobError`.
    """
    if ":" not in rule:
        if error := explain_unknown_rule(rule, "file.py:name"):
            raise JobError(f"{key}: {error}")
        return resolve_rule(rule)
    made = load(rule)
    if callable(made):
        try:
            made = made()
        except TypeError as error:
            raise JobError(f"{key}: expected a rule, or a function that makes one: {error}") from error
    if not isinstance(made, Rule):
        raise JobError(f"{key}: expected a rule (Sum, Columns or Geometry), got {type(made).__name__} from {rule}")
    return made
