"""Quantity skew: clients have different numbers of examples, with the same distribution of labels."""

from typing import Any

import numpy as np

from flcore.partition.labels import Partition, label_codes, require_alpha, require_sizes


def quantity_skew(labels: Any, clients: int, alpha: float, *, seed: int = 0, min_size: int = 1) -> Partition:
    """Draw the clients' sizes from a Dirichlet distribution, and each client's examples from all of them.

    Each client has its minimum; the rest is divided in portions from Dir(alpha) (Li et al., 2021, arXiv:2102.02079).

    Args:
        labels: One label per example. Their values do not matter; their number does.
        clients: The number of clients.
        alpha: The concentration, > 0. 0.1 gives a few clients nearly all; 100 gives all nearly the same.
        seed: The seed. The result is a function of it and of the other arguments. Default: 0.
        min_size: The least number of examples of a client. Default: 1.

    Returns:
        For each client, the indices of its examples, ascending. Each index is in exactly one of them.

    Raises:
        PartitionError: An argument is invalid, or there are too few examples.

    Example:
        >>> parts = quantity_skew([0] * 100, clients=3, alpha=0.5, seed=2, min_size=10)
        >>> sum(map(len, parts)), min(map(len, parts)) >= 10
        (100, True)
    """
    _, codes = label_codes(labels)
    require_sizes(len(codes), clients, min_size)
    require_alpha(alpha)
    rng, spare = np.random.default_rng(seed), len(codes) - clients * min_size
    cuts = np.floor(rng.dirichlet(np.full(clients, alpha)).cumsum()[:-1] * spare).astype(np.int64)
    cuts = np.minimum(cuts, spare) + min_size * np.arange(1, clients)
    return [np.sort(part).astype(np.int64) for part in np.split(rng.permutation(len(codes)), cuts)]
