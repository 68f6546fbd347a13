"""The workflow of a job: a bundled one, or a function in the job's code."""

from collections.abc import Callable

from flcore.errors import JobError
from flcore.job.job import Job
from flcore.server.controller import Controller
from flcore.text import did_you_mean
from flcore.workflows.cross_site_evaluation import cross_site_evaluation
from flcore.workflows.cyclic import cyclic
from flcore.workflows.fed_avg import fed_avg
from flcore.workflows.fed_eval import fed_eval
from flcore.workflows.fed_nova import fed_nova
from flcore.workflows.federated_statistics import federated_statistics
from flcore.workflows.scaffold import scaffold

Workflow = Callable[[Controller], None]

WORKFLOWS: dict[str, Workflow] = {
    "fed_avg": fed_avg,
    "fed_nova": fed_nova,
    "scaffold": scaffold,
    "cyclic": cyclic,
    "cross_site_evaluation": cross_site_evaluation,
    "fed_eval": fed_eval,
    "federated_statistics": federated_statistics,
}
"""The bundled workflows, by their name in `server.workflow`."""


def load_workflow(job: Job) -> Workflow:
    """Return the workflow that `server.workflow` names, or raise `JobError`."""
    name = job.contract.server.workflow
    if name in WORKFLOWS:
        return WORKFLOWS[name]
    if ":" not in name:
        raise JobError(
            f"server.workflow: expected a bundled workflow ({', '.join(WORKFLOWS)}) or 'file.py:function', got {name!r}"
            f"{did_you_mean(name, WORKFLOWS)}"
        )
    workflow = job.load_reference("server.workflow", name)
    if not callable(workflow):
        raise JobError(f"server.workflow: expected a function, {name} is a {type(workflow).__name__}")
    return workflow  # type: ignore[no-any-return]
