"""The workflow that a job names: a bundled one, or a function of its own."""

from collections.abc import Callable

from flcore.errors import JobError
from flcore.job.job import Job
from flcore.server.controller import Controller
from flcore.workflows.fed_avg import fed_avg

Workflow = Callable[[Controller], None]

WORKFLOWS: dict[str, Workflow] = {"fed_avg": fed_avg}
"""Every bundled workflow, by the name that a job gives it."""


def load_workflow(job: Job) -> Workflow:
    """Return the workflow that a job names, bundled or its own, or raise `JobError`."""
    name = job.contract.server.workflow
    if name in WORKFLOWS:
        return WORKFLOWS[name]
    if ":" not in name:
        raise JobError(
            f"server.workflow: {name!r} is not bundled ({', '.join(WORKFLOWS)}); your own is 'file.py:function'"
        )
    workflow = job.load_reference("server.workflow", name)
    if not callable(workflow):
        raise JobError(f"server.workflow: {name} is not a function")
    return workflow  # type: ignore[no-any-return]
