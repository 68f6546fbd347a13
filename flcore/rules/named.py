"""The tables of rules, stages and server optimizers, by name, and how names with arguments are read.

Several parts are joined by " + ": stages, a rule, an optimizer (see `chains`). A rule of your own is a value of
`kinds`. Pass it directly (`flcore.aggregate(..., rule=median)`), or by a name: in `RULES`, or in a job and on a
command line as `file.py:name`.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flcore.errors import JobError
from flcore.rules.centre import centered_clip, geometric_median
from flcore.rules.chains import chain
from flcore.rules.clipping import arc, clip_norm, clipped_mean
from flcore.rules.kinds import MEAN, UNWEIGHTED_MEAN, Rule, ServerStep, Stage
from flcore.rules.mixing import bucketing, nnm
from flcore.rules.order import meamed, median, trimmed_mean
from flcore.rules.selection import bulyan, krum, mda, multi_krum
from flcore.rules.server_optimizers import fed_adagrad, fed_adam, fed_avg_m, fed_yogi, server_lr
from flcore.text import did_you_mean

_SEPARATOR = re.compile(r"\s*\+\s*(?![^(]*\))")
"""A plus sign that is not within parentheses."""

_WITH_ARGUMENTS = re.compile(r"(\w+)(?:\((.*)\))?", re.DOTALL)


def mean() -> Rule:
    """Each update counts by its weight, usually its number of examples (FedAvg; McMahan et al., 2017)."""
    return MEAN


def unweighted_mean() -> Rule:
    """All updates have the same weight."""
    return UNWEIGHTED_MEAN


RULES: dict[str, Callable[..., Rule]] = {
    "mean": mean,
    "unweighted_mean": unweighted_mean,
    "clipped_mean": clipped_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "meamed": meamed,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "mda": mda,
    "geometric_median": geometric_median,
    "centered_clip": centered_clip,
}
"""A function that makes each rule, by the name that jobs and the command line use."""

STAGES: dict[str, Callable[..., Stage]] = {"clip_norm": clip_norm, "arc": arc, "nnm": nnm, "bucketing": bucketing}
"""A function that makes each stage, by its name."""

OPTIMIZERS: dict[str, Callable[..., ServerStep]] = {
    "server_lr": server_lr,
    "fed_avg_m": fed_avg_m,
    "fed_adagrad": fed_adagrad,
    "fed_yogi": fed_yogi,
    "fed_adam": fed_adam,
}
"""A function that makes each server optimizer, by its name."""


def resolve_rule(rule: str | Rule) -> Rule:
    """Return the rule of a name, such as `mean` or `nnm(f=2) + trimmed_mean(f=2)`, or a given rule itself.

    Raises:
        JobError: There is no such rule, or its arguments are wrong.

    >>> resolve_rule("mean").name, resolve_rule("trimmed_mean(f=2)").name
    ('mean', 'trimmed_mean(f=2)')
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise JobError(
            f"rule: expected a name or a rule (flcore.Sum, Columns, Geometry or Chain), got {type(rule).__name__}"
        )
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


def factory_of(name: str) -> Callable[..., Rule | Stage | ServerStep]:
    """Return the function that makes a rule, a stage or an optimizer, by its name alone. Raises `JobError`."""
    factory = RULES.get(name) or STAGES.get(name) or OPTIMIZERS.get(name)
    if factory is None:
        raise JobError(_unknown(name, "a rule of your own"))
    return factory


def name_with_arguments(table: Mapping[str, Any] | Sequence[Mapping[str, Any] | str]) -> str:
    """Return the name of a rule that is given as a table, or as a list of tables and names.

    >>> name_with_arguments({"name": "trimmed_mean", "f": 2})
    'trimmed_mean(f=2)'
    >>> name_with_arguments([{"name": "clip_norm", "max_norm": 1.0}, "mean"])
    'clip_norm(max_norm=1.0) + mean'
    """
    if not isinstance(table, Mapping):
        return " + ".join(part if isinstance(part, str) else name_with_arguments(part) for part in table)
    arguments = [f"{key}={json.dumps(value)}" for key, value in table.items() if key != "name"]
    return f"{table.get('name', '')}({', '.join(arguments)})" if arguments else str(table.get("name", ""))


def _named_rule(text: str, alternative: str) -> Rule:
    return chain(*(_named_part(part, alternative) for part in _SEPARATOR.split(text)))


def _named_part(text: str, alternative: str) -> Rule | Stage | ServerStep:
    match = _WITH_ARGUMENTS.fullmatch(text.strip())
    name = match[1] if match else text.strip()
    factory = RULES.get(name) or STAGES.get(name) or OPTIMIZERS.get(name)
    if match is None or factory is None:
        raise JobError(_unknown(name, alternative))
    arguments = _arguments(text, match[2] or "")
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
        f"rule {name!r} does not exist; expected one of {', '.join(RULES)}, or {alternative}; joined by +, before it "
        f"{', '.join(STAGES)}, and behind it {', '.join(OPTIMIZERS)}"
        f"{did_you_mean(name, [*RULES, *STAGES, *OPTIMIZERS])}"
    )
