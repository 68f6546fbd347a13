"""Cross-site evaluation: the model of each site is evaluated at each site.

NVIDIA FLARE's workflow `CrossSiteModelEval` ("cross site model evaluation" in its programming guide) is the source. It
collects models that the sites have; here, each site trains its model from the global one.

`job.toml` of a job that evaluates the sites' models and the global one:

    [server]
    model = "model.safetensors"         # the global model
    workflow = "cross_site_evaluation"
    rounds = 1
    quorum = 3                          # sites that must be connected

    [tasks.train]
    returns = "weights"

    [tasks.validate]
    returns = "metrics"
"""

from flcore.model.chunks import GlobalModel
from flcore.server.controller import Controller
from flcore.server.evaluation import Evaluation, require_answers, sites_without


def cross_site_evaluation(control: Controller) -> None:
    """Have each site train the global model, and all sites evaluate each of these models.

    The sites train one after the other: one call of `Controller.train` for all of them gives the combination of their
    updates, and no single one. So the server holds one model besides the global one. The job's rule is applied to each
    update alone, and the mean of one update is this update.

    `results.json` has the metrics of the model of site A at site B as `sites[A][B]`, and those of the global model at
    site B as `global[B]`. `missing` has the sites without a model. The history's `validate` is for the global model.
    The job fails if no site has a model.
    """
    model = control.initial_model
    for _ in control.rounds():
        clients = control.sample(fraction=1.0)
        rows = {client: _evaluate_model_of(control, model, client, clients) for client in clients}
        sites = {client: row for client, row in rows.items() if row is not None}
        control.save_results(
            {
                "workflow": "cross_site_evaluation",
                "global": _metrics(control.evaluate(model, clients)),
                "sites": sites,
                "missing": sites_without(control.job.contract, clients, sites),
            }
        )
        require_answers("train", sites)


def _evaluate_model_of(
    control: Controller, model: GlobalModel, client: str, clients: list[str]
) -> dict[str, dict[str, float]] | None:
    """Return the metrics of a site's model at each site; None if the site did not train one."""
    updates = control.train(model, [client], quorum=0)
    return _metrics(control.evaluate(updates.aggregate(), clients)) if updates.clients else None


def _metrics(evaluations: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    return {client: each.metrics for client, each in evaluations.items()}
