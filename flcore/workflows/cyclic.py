"""Cyclical weight transfer: the weights travel from site to site.

Chang et al., 2018, "Distributed deep learning networks among institutions for medical imaging", Journal of the American
Medical Informatics Association 25(8), 945-954, doi:10.1093/jamia/ocy017.

`job.toml` of a job in which the weights make 20 tours of the sites:

    [server]
    model = "train.py:initial_model"
    workflow = "cyclic"
    rounds = 20
    quorum = 3                          # sites that must train in each tour

    [tasks.train]
    returns = "weights"

    [tasks.validate]
    returns = "metrics"
"""

import numpy as np

from flcore.model.chunks import GlobalModel
from flcore.server.controller import Controller
from flcore.server.task_contents import derive_seed

ORDER_LABEL = "/cyclic"
"""Stands for the order of the sites where a client's name stands for the client. No client's name has a slash."""


def cyclic(control: Controller) -> None:
    """Run cyclical weight transfer.

    Each round is a tour: the sampled sites train one after the other, each the model that it gets from the site before
    it. The order of a tour is drawn from the job's seed and the round. A site that does not answer is left out of this
    tour. If fewer than `server.quorum` sites have trained, sites that were left out are asked once more, at the end of
    the tour, as `server.on_quorum_failure` says. All sites of the tour then validate the model.
    """
    contract = control.job.contract
    model = control.initial_model
    for number in control.rounds():
        clients = control.sample()
        draw = np.random.default_rng(derive_seed(contract.seed, number, ORDER_LABEL))
        left_out = []
        for client in draw.permutation(clients).tolist():
            visited = _visit(control, model, client)
            if visited is None:
                left_out.append(client)
            else:
                model = visited
        needed = contract.server.quorum - (len(clients) - len(left_out))
        for client in left_out[: max(0, needed)]:
            model = control.train(model, [client], quorum=1).aggregate()
        control.publish(model, control.validate(model, clients))


def _visit(control: Controller, model: GlobalModel, client: str) -> GlobalModel | None:
    """Return the model that a site has trained; None if it did not answer."""
    updates = control.train(model, [client], quorum=0)
    return updates.aggregate() if updates.clients else None
