"""Federated averaging."""

from flcore.server.controller import Controller


def fed_avg(control: Controller) -> None:
    """Run federated averaging (McMahan et al., 2017, arXiv:1602.05629, algorithm 1).

    Each round, the sampled clients train the global model on their own data. The job's rule (by default the mean,
    weighted by the updates' weights) combines their updates into the next global model. The clients then validate it.
    """
    model = control.initial_model
    for _ in control.rounds():
        clients = control.sample()
        updates = control.train(model, clients)
        model = updates.aggregate()
        metrics = control.validate(model, clients)
        control.publish(model, metrics)
