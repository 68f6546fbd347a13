"""SCAFFOLD: control variates against client drift.

Karimireddy et al., 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", arXiv:1910.06378,
algorithm 1 with option II.

`job.toml`; `initial_model` returns `flcore.heterogeneity.with_control_variates(...)`, and the clients return the update
of a `flcore.heterogeneity.Scaffold`:

    [server]
    model = "train.py:initial_model"
    workflow = "scaffold"
    rule = "unweighted_mean"
    rounds = 40

    [tasks.train]
    returns = "delta"
"""

from flcore.errors import JobError
from flcore.heterogeneity.control_variates import close_round, counted_rounds
from flcore.server.controller import Controller


def scaffold(control: Controller) -> None:
    """Run SCAFFOLD with a server's rate of 1.

    As in the paper, means are unweighted over the clients S that answered, and the change of the control variates is
    scaled by |S|/N, where N is the number of the contract's clients. Clients are told which of their rounds count,
    because an update may miss its round. The workflow holds one more set of control variates in memory.

    Raises:
        JobError: The task `train` does not return `delta`, the rule is not `unweighted_mean`, or the first model has no
            control variates for the contract's clients.
    """
    contract, names = control.job.contract, control.job.contract.client_names
    if "train" in contract.tasks and contract.tasks["train"].returns != "delta":
        raise JobError('scaffold: expected tasks.train.returns = "delta", got "weights" or "metrics"')
    if contract.server.rule != "unweighted_mean":
        raise JobError(f'scaffold: expected server.rule = "unweighted_mean", got {contract.server.rule!r}')
    counted_rounds(control.last_model.arrays(), len(names))
    for number in control.remaining_rounds():
        start, clients = control.last_model, control.sample()
        updates = control.train(start, clients)
        model = updates.aggregate()
        if not updates.is_skipped:
            answered = [names.index(client) for client in updates.clients]
            model = control.model_of(close_round(start.arrays(), model.arrays(), answered, number))
        control.publish(model, control.validate(model, clients))
