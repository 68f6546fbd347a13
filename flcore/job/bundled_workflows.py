"""What the bundled workflows need of a contract."""

from collections.abc import Mapping

ONE_ROUND_WORKFLOWS = ("cross_site_evaluation", "fed_eval", "federated_statistics")
"""Workflows whose results are those of one round."""

ARRAYS, METRICS = ("weights", "delta"), ("metrics",)

NEEDED_TASKS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cross_site_evaluation": {"train": ARRAYS, "validate": METRICS},
    "cyclic": {"train": ARRAYS},
    "fed_eval": {"validate": METRICS},
    "fed_nova": {"train": ("delta",)},
    "federated_statistics": {"statistics": METRICS},
    "scaffold": {"train": ("delta",)},
}
"""By workflow and task, what the task may return. `fed_avg` reports its tasks itself."""


def explain_misfit(workflow: str, rounds: int, returns: Mapping[str, str]) -> str:
    """Explain why a bundled workflow cannot run with a contract.

    Args:
        workflow: The contract's `server.workflow`.
        rounds: The contract's `server.rounds`.
        returns: What the contract's tasks return, by task.

    Returns:
        The reason; empty if the workflow can run, or is the job's own.

    Example:
        >>> explain_misfit("fed_eval", 1, {"train": "weights"})
        "server.workflow = 'fed_eval' needs tasks.validate with returns = 'metrics', got no such task"
    """
    if workflow in ONE_ROUND_WORKFLOWS and rounds != 1:
        return f"server.workflow = {workflow!r} has one round, got server.rounds = {rounds}: set rounds = 1"
    for task, allowed in NEEDED_TASKS.get(workflow, {}).items():
        got = returns.get(task)
        if got not in allowed:
            expected = " or ".join(repr(kind) for kind in allowed)
            found = "no such task" if got is None else repr(got)
            return f"server.workflow = {workflow!r} needs tasks.{task} with returns = {expected}, got {found}"
    return ""
