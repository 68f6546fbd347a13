"""Federated averaging, with early stopping.

McMahan et al., 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv:1602.05629,
algorithm 1.

`job.toml` of a job that ends at an accuracy of 95 %, or after 5 rounds without a better one:

    [server]
    model = "train.py:initial_model"
    workflow = "fed_avg"                # the default
    rounds = 100
    best = "accuracy:max"
    target = "accuracy:0.95"
    patience = 5
"""

from flcore.server.controller import Controller


def fed_avg(control: Controller) -> None:
    """Run federated averaging.

    Each round, the sampled clients train the global model on their own data. The job's rule (by default the mean,
    weighted by the updates' weights) combines their updates into the next global model. The clients then validate it.

    `Controller.rounds` ends at `server.target`, or after `server.patience` rounds without an improvement.
    """
    model = control.initial_model
    for _ in control.rounds():
        clients = control.sample()
        updates = control.train(model, clients)
        model = updates.aggregate()
        metrics = control.validate(model, clients)
        control.publish(model, metrics)
