"""Composing rules: stages, and then one rule."""

from flcore.aggregation.rule_kinds import Chain, Geometry, Rule, Stage
from flcore.errors import JobError


def chain(*parts: Stage | Rule) -> Rule:
    """Compose stages and a rule into one rule.

    Args:
        parts: Stages in the order in which they are applied (`clip_norm`, `arc`, `nnm`, `bucketing`), then one rule.

    Returns:
        The rule. Its name is that of its parts, joined by " + ": jobs and the command line use such names.

    Raises:
        JobError: There is no rule, more than one, or a stage behind it.

    Example:
        >>> from flcore.aggregation.mixing_rules import nnm
        >>> from flcore.aggregation.order_rules import trimmed_mean
        >>> rule = chain(nnm(f=2), trimmed_mean(f=2))
        >>> rule.name, rule.min_updates
        ('nnm(f=2) + trimmed_mean(f=2)', 5)
    """
    for part in parts:
        if not isinstance(part, Stage | Rule):
            raise JobError(f"chain: expected stages and a rule, got {type(part).__name__}")
    names = " + ".join(part.name for part in parts)
    stages, rules = (
        [part for part in parts if isinstance(part, Stage)],
        [part for part in parts if isinstance(part, Rule)],
    )
    if not rules:
        what = f"{names} is stages alone" if parts else "it is empty"
        raise JobError(f"chain: {what}: end it with a rule, such as mean or trimmed_mean(f=1)")
    last = rules[-1]
    if len(rules) > 1 or parts[-1] is not last:
        raise JobError(f"chain {names}: {rules[0].name} is a rule, and only the last part may be one")
    if not stages:
        return last
    if isinstance(last, Geometry):
        raise JobError(f"chain {names}: {last.name} is a Geometry, which takes no stages: write a Stage instead")
    inner = last if isinstance(last, Chain) else Chain(last.name, (), last)
    return Chain(names, (*stages, *inner.stages), inner.rule)
