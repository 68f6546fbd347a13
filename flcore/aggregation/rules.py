"""The table of aggregation rules, by name, and how a name with arguments is read.

A rule of your own is a value of `rule_kinds`. Pass it directly (`flcore.aggregate(..., rule=median)`), or by a name: in
`RULES`, or in a job and on a command line as `file.py:name`.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from flcore.aggregation.order_rules import median, trimmed_mean
from flcore.aggregation.rule_kinds import Rule, Sum
from flcore.errors import JobError
from flcore.text import did_you_mean

_WITH_ARGUMENTS = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)


def mean() -> Rule:
    """Each update counts by its weight, usually its number of examples (FedAvg; McMahan et al., 2017)."""
    return Sum("mean", lambda weight: weight)


def unweighted_mean() -> Rule:
    """All updates have the same weight."""
    return Sum("unweighted_mean", lambda _: 1.0)


RULES: dict[str, Callable[..., Rule]] = {
    "mean": mean,
    "unweighted_mean": unweighted_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
}
"""A function that makes each rule, by the name that jobs and the command line use."""


def resolve_rule(rule: str | Rule) -> Rule:
    """Return the rule of a name, such as `mean` or `trimmed_mean(f=2)`, or a given rule itself.

    Raises:
        JobError: There is no such rule, or its arguments are wrong.

    >>> resolve_rule("mean").name, resolve_rule("trimmed_mean(f=2)").name
    ('mean', 'trimmed_mean(f=2)')
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise JobError(f"rule: expected a name or a rule (flcore.Sum, Columns or Geometry), got {type(rule).__name__}")
    return _named_rule(rule, "a rule of your own")


def explain_invalid_rule(rule: str, alternative: str) -> str:
    """Return the error for a name that is no rule, or for its arguments; "" if it is a rule.

    A job, a command line and a call raise it in their own ways. `alternative` says how they name a rule of your own.
    """
    try:
        _named_rule(rule, alternative)
    except JobError as error:
        return str(error)
    return ""


def factory_of(name: str) -> Callable[..., Rule]:
    """Return the function that makes a rule, by its name without arguments. Raises `JobError`."""
    if name not in RULES:
        raise JobError(_unknown(name, "a rule of your own"))
    return RULES[name]


def name_with_arguments(table: Mapping[str, Any]) -> str:
    """Return the name of a rule that is given as a table.

    >>> name_with_arguments({"name": "trimmed_mean", "f": 2})
    'trimmed_mean(f=2)'
    """
    arguments = [f"{key}={json.dumps(value)}" for key, value in table.items() if key != "name"]
    return f"{table.get('name', '')}({', '.join(arguments)})" if arguments else str(table.get("name", ""))


def _named_rule(text: str, alternative: str) -> Rule:
    match = _WITH_ARGUMENTS.fullmatch(text)
    name = match[1] if match else text
    if match is None or name not in RULES:
        raise JobError(_unknown(name, alternative))
    factory, arguments = RULES[name], _arguments(text, match[2] or "")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        usage = f"{name}{inspect.signature(factory).replace(return_annotation=inspect.Signature.empty)}"
        raise JobError(f"rule {text!r}: {error}; it is used as {usage}") from None
    return factory(**arguments)


def _arguments(text: str, listed: str) -> dict[str, Any]:
    """Return the arguments of a rule: `key=value`, with values as in JSON."""
    arguments: dict[str, Any] = {}
    for item in listed.split(",") if listed.strip() else []:
        key, _, value = (part.strip() for part in item.partition("="))
        if key in arguments:
            raise JobError(f"rule {text!r}: expected each key once, got {key} again")
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            raise JobError(f"rule {text!r}: expected key=value with a number, true or false, got {item!r}") from None
    return arguments


def _unknown(name: str, alternative: str) -> str:
    return (
        f"rule {name!r} does not exist; expected one of {', '.join(RULES)}, or {alternative}{did_you_mean(name, RULES)}"
    )
