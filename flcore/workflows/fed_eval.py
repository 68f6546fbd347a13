"""Federated evaluation: a model is evaluated at all sites, and not changed.

Bonawitz et al., 2019, "Towards Federated Learning at Scale: System Design", arXiv:1902.01046, has evaluation of trained
models on the devices' data as a kind of task of its own.

`job.toml` of a job that evaluates a checkpoint:

    [server]
    model = "model.safetensors"         # or a function, whose model is evaluated
    workflow = "fed_eval"
    rounds = 1
    quorum = 3                          # sites that must be connected

    [tasks.validate]
    returns = "metrics"
"""

from flcore.server.controller import Controller
from flcore.server.evaluation import average_of, require_answers, sites_without


def fed_eval(control: Controller) -> None:
    """Have all connected clients evaluate the job's first model.

    `results.json` has the metrics of each site that answered (`sites`), its weight (`weights`), the average by weight
    (`average`), and the sites without an answer (`missing`), which may not have been connected. The history has the
    average, and the reasons. The job fails if no site has answered.
    """
    for _ in control.rounds():
        clients = control.sample(fraction=1.0)
        evaluations = control.evaluate(control.initial_model, clients)
        control.save_results(
            {
                "workflow": "fed_eval",
                "average": average_of(evaluations),
                "sites": {client: each.metrics for client, each in evaluations.items()},
                "weights": {client: each.weight for client, each in evaluations.items()},
                "missing": sites_without(control.job.contract, clients, evaluations),
            }
        )
        require_answers("validate", evaluations)
