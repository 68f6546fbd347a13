"""The rule that a job or a command line names: one of `RULES`, or `file.py:name`, an object in the job's code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flcore.errors import JobError
from flcore.job.code import JobCode
from flcore.rules.kinds import Rule
from flcore.rules.named import explain_invalid_rule, resolve_rule


def load_rule(rule: str, directory: Path, key: str) -> Rule:
    """Return a rule by name, or load it from the code of a directory.

    Args:
        rule: A key of `RULES`, with arguments where it has some, or `file.py:name`.
        directory: The directory of the file.
        key: The place where the rule was named, for errors.

    Returns:
        The rule.

    Raises:
        JobError: The rule does not exist, cannot be loaded, or is no rule.
    """
    return load_rule_with(rule, lambda reference: JobCode(directory).load(reference, key), key)


def load_rule_with(rule: str, load: Callable[[str], Any], key: str) -> Rule:
    """Return a rule by name, or the one that `load` returns for `file.py:name`: a rule, or a function that makes one.

    `key` is the place where the rule was named, for errors. Raises `JobError`.
    """
    if ":" not in rule:
        if error := explain_invalid_rule(rule, "file.py:name"):
            raise JobError(f"{key}: {error}")
        return resolve_rule(rule)
    loaded = load(rule)
    if callable(loaded):
        try:
            loaded = loaded()
        except TypeError as error:
            raise JobError(f"{key}: expected a rule, or a function that makes one: {error}") from error
    if not isinstance(loaded, Rule):
        raise JobError(
            f"{key}: expected a rule (Sum, Columns, Geometry or Chain), got {type(loaded).__name__} from {rule}"
        )
    return loaded
