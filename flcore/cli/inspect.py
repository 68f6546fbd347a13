"""`flcore job check` and `flcore rules`: read-only commands."""

from typing import Annotated

import typer
from rich.console import Console

from flcore.aggregation.rules import RULES, resolve_rule
from flcore.client.executor import require_tasks
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.workflows.bundled import load_workflow


def check(
    path: Annotated[str, typer.Argument(help="A directory with job.toml, or the name of a bundled job.")],
) -> None:
    """Validate a job and print a summary: reads its contract, loads its code, creates its first model."""
    job = Job.load(path)
    load_workflow(job)
    job.load_rule()
    require_tasks(job)
    if job.contract.baselines is not None:
        job.load_reference("baselines", job.contract.baselines)
    spec = job.initial_model().spec
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in _describe(job.contract):
        console.print(line)
    size = f"{len(spec.tensors)} tensors, {spec.parameters:,} parameters, {spec.nbytes / 1e6:,.1f} MB"
    console.print(f"model        {size}")
    console.print(f"fingerprint  {job.contract.fingerprint}")
    console.print(f"code         {job.code_digest}")
    console.print("The job is sound.")


def rules(name: Annotated[str | None, typer.Argument(help="Name of one rule.")] = None) -> None:
    """List the aggregation rules, or describe one. A custom rule is named file.py:name."""
    for known in RULES if name is None else [resolve_rule(name).name]:
        print(f"{known:<16} {RULES[known].__doc__}")
    if name is None:
        print("A custom rule is named file.py:name (docs/rules.md).")


def _describe(contract: Contract) -> list[str]:
    server = contract.server
    names = contract.client_names
    who = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    closing = f"or with {server.close_at} answers" if server.close_at else "or when all have answered"
    tasks = [f"task         {name} returns {task.returns}" for name, task in contract.tasks.items()]
    return [
        f"job          {contract.name}, seed {contract.seed}",
        f"clients      {who}",
        f"server       {server.workflow}, {server.rounds} rounds, rule {server.rule}, fraction {server.fraction:g}",
        f"a round      closes after {server.deadline_s:g} s {closing}; it counts with {server.quorum} updates",
        *tasks,
    ]
