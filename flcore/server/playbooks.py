"""The playbooks: what the server does, round by round. A job's own (`controller = "file.py:name"`) is no different."""

from collections.abc import Callable

from flcore.errors import JobError
from flcore.job.job import Job
from flcore.server.controller import Controller

Playbook = Callable[[Controller], None]


def fed_avg(control: Controller) -> None:
    """Federated averaging (McMahan et al., 2017, arXiv:1602.05629, algorithm 1).

    Each round, the sampled clients train the global model on their own data, the mean of their models, weighted by the
    number of their examples, is the next global model, and the clients validate it on what they held out.
    """
    model = control.initial_model
    for _ in control.rounds():
        clients = control.sample()
        updates = control.train(model, clients)
        model = updates.aggregate()
        metrics = control.validate(model, clients)
        control.keep(model, metrics)


PLAYBOOKS: dict[str, Playbook] = {"fed_avg": fed_avg}
"""Every bundled playbook, by the name that a job gives it."""


def playbook_of(job: Job) -> Playbook:
    """Return the playbook that a job names, bundled or its own, or raise `JobError`."""
    name = job.contract.server.controller
    if name in PLAYBOOKS:
        return PLAYBOOKS[name]
    if ":" not in name:
        raise JobError(
            f"server.controller: {name!r} is not bundled ({', '.join(PLAYBOOKS)}); your own is 'file.py:function'"
        )
    playbook = job.reference("server.controller", name)
    if not callable(playbook):
        raise JobError(f"server.controller: {name} is not a function")
    return playbook  # type: ignore[no-any-return]
