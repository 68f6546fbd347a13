"""FedNova: normalised averaging of clients that take different numbers of local steps.

Wang et al., 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
arXiv:2007.07481.

`job.toml`; the clients return `flcore.heterogeneity.nova_update(...)`:

    [server]
    model = "train.py:initial_model"
    workflow = "fed_nova"
    rounds = 40

    [tasks.train]
    returns = "delta"
"""

from flcore.errors import JobError
from flcore.heterogeneity.fed_nova import scale_step, step_scale
from flcore.server.controller import Controller


def fed_nova(control: Controller) -> None:
    """Run FedNova with τ_eff = Σ p_i · ‖a_i‖₁.

    The clients return `flcore.heterogeneity.nova_update(...)` from a task that returns `delta`, and the rule is `mean`:
    their weights normalise the changes. The server scales the mean change by τ_eff / τ_h (see
    `flcore.heterogeneity.fed_nova`). If all clients take the same number of steps, this is FedAvg. The
    workflow holds one more model in memory.

    Raises:
        JobError: The task `train` does not return `delta`, the rule is not `mean`, or the updates have no norms.
    """
    contract = control.job.contract
    if "train" in contract.tasks and contract.tasks["train"].returns != "delta":
        raise JobError('fed_nova: expected tasks.train.returns = "delta", got "weights" or "metrics"')
    if contract.server.rule != "mean":
        raise JobError(f'fed_nova: expected server.rule = "mean", got {contract.server.rule!r}')
    for _ in control.remaining_rounds():
        start, clients = control.last_model, control.sample()
        updates = control.train(start, clients)
        model = updates.aggregate()
        if not updates.is_skipped and (scale := step_scale(updates.metrics)) != 1:
            model = control.model_of(scale_step(start.arrays(), model.arrays(), scale))
        control.publish(model, control.validate(model, clients))
