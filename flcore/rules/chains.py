"""Composing rules: stages, then one rule, then a server optimizer."""

from flcore.errors import JobError
from flcore.rules.kinds import Chain, Geometry, Rule, ServerStep, Stage


def chain(*parts: Stage | Rule | ServerStep) -> Rule:
    """Compose stages, a rule and a server optimizer into one rule.

    Args:
        parts: Stages in the order in which they are applied (`clip_norm`, `arc`, `nnm`, `bucketing`), then one rule,
            and then a server optimizer or none (`fed_adam`).

    Returns:
        The rule. Its name is that of its parts, joined by " + ": jobs and the command line use such names.

    Raises:
        JobError: There is no rule, more than one, or a stage behind it; or more than one optimizer, or one before a
            rule.

    Example:
        >>> from flcore.rules.mixing import nnm
        >>> from flcore.rules.order import trimmed_mean
        >>> rule = chain(nnm(f=2), trimmed_mean(f=2))
        >>> rule.name, rule.min_updates
        ('nnm(f=2) + trimmed_mean(f=2)', 5)
    """
    for part in parts:
        if not isinstance(part, Stage | Rule | ServerStep):
            raise JobError(f"chain: expected stages, a rule and a server optimizer, got {type(part).__name__}")
    names = " + ".join(part.name for part in parts)
    step = parts[-1] if parts and isinstance(parts[-1], ServerStep) else None
    for part in parts[:-1]:
        if isinstance(part, ServerStep):
            raise JobError(f"chain {names}: {part.name} is a server optimizer, and only the last part may be one")
    stages = [part for part in parts if isinstance(part, Stage)]
    rules = [part for part in parts if isinstance(part, Rule)]
    if not rules:
        what = f"{names} has no rule" if parts else "it is empty"
        raise JobError(f"chain: {what}: add one, such as mean or trimmed_mean(f=1), behind the stages")
    last = rules[-1]
    if len(rules) > 1 or parts[len(stages)] is not last:
        raise JobError(f"chain {names}: {rules[0].name} is a rule, and stages alone may stand before another part")
    if not stages and step is None:
        return last
    if isinstance(last, Geometry):
        raise JobError(f"chain {names}: {last.name} is a Geometry, which takes no other parts: write a Stage instead")
    inner = last if isinstance(last, Chain) else Chain(last.name, (), last)
    if inner.step is not None and step is not None:
        raise JobError(f"chain {names}: {last.name} has a server optimizer already")
    return Chain(names, (*stages, *inner.stages), inner.rule, step or inner.step)
