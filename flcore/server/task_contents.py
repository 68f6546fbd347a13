"""The clients of a round, the contents of their assignments, and the seeds in them."""

import hashlib
from collections.abc import Sequence

import numpy as np

from flcore.errors import JobError
from flcore.job.contract import Contract
from flcore.job.messages import TaskContent

SAMPLER_LABEL = "/sample"
"""Stands for the sampler where a client's name stands for the client. No client's name has a slash."""

RULE_LABEL = "/rule"
"""Stands for the rule in the same way."""


def task_contents(contract: Contract, round_number: int, task: str, clients: Sequence[str]) -> dict[str, TaskContent]:
    """Return the content of each client's assignment, by client. Raises `JobError` if there are no clients."""
    if not clients:
        raise JobError(f"tasks.{task}: there are no clients to ask")
    content = TaskContent(
        task=task,
        round=round_number,
        rounds=contract.server.rounds,
        seed=0,
        hyperparameters=contract.hyperparameters(task, round_number),
    )
    return {
        client: content.model_copy(update={"seed": derive_seed(contract.seed, round_number, client)})
        for client in clients
    }


def task_returns(contract: Contract, task: str) -> str:
    """Return the kind of a task's answers, or raise `JobError` if the contract has no such task."""
    if task not in contract.tasks:
        raise JobError(f"the contract has no task {task!r}; it has {', '.join(contract.tasks)}")
    return contract.tasks[task].returns


def draw_clients(
    contract: Contract, round_number: int, connected: Sequence[str], fraction: float | None = None
) -> list[str]:
    """Draw clients for a round by the job's seed, sorted: a fraction of the connected ones, and at least the quorum."""
    server = contract.server
    count = max(server.quorum, round((server.fraction if fraction is None else fraction) * len(connected)))
    draw = np.random.default_rng(derive_seed(contract.seed, round_number, SAMPLER_LABEL))
    return sorted(draw.choice(connected, min(count, len(connected)), replace=False).tolist())


def derive_seed(seed: int, round_number: int, label: str) -> int:
    """Return the seed of a client, of the sampler or of a workflow in one round: 32 bits of a SHA-256 of the arguments.

    >>> derive_seed(0, 1, "client-1"), derive_seed(0, 1, SAMPLER_LABEL)
    (3179767677, 1426402723)
    """
    digest = hashlib.sha256(f"{seed}/{round_number}/{label}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
