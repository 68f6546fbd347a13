"""Label skew from a Dirichlet distribution, in the two forms of the literature."""

from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import PartitionError
from flcore.partition.labels import (
    MAX_DRAWS,
    Indices,
    Partition,
    deal,
    label_codes,
    require_alpha,
    require_sizes,
)


def dirichlet(labels: Any, clients: int, alpha: float, *, seed: int = 0, min_size: int = 1) -> Partition:
    """Divide the examples of each label in portions drawn from Dir(alpha) over the clients.

    The clients differ in their labels and in their sizes (Yurochkin et al., 2019, arXiv:1905.12022; Li et al., 2021,
    arXiv:2102.02079). This is the usual partition of benchmarks. The whole partition is drawn again, up to 500 times,
    until each client has its minimum.

    Args:
        labels: One label per example: numbers or strings; a list, or an array of any library.
        clients: The number of clients.
        alpha: The concentration, > 0. 0.1 gives most clients a few labels; 100 gives all nearly the same.
        seed: The seed. The result is a function of it and of the other arguments. Default: 0.
        min_size: The least number of examples of a client. Default: 1.

    Returns:
        For each client, the indices of its examples, ascending. Each index is in exactly one of them.

    Raises:
        PartitionError: An argument is invalid, there are too few examples, or no draw gives each client its minimum.

    Example:
        >>> parts = dirichlet([0, 1] * 50, clients=4, alpha=0.5, seed=1, min_size=5)
        >>> sorted(np.concatenate(parts).tolist()) == list(range(100)), min(map(len, parts)) >= 5
        (True, True)
    """
    _, codes = label_codes(labels)
    require_sizes(len(codes), clients, min_size)
    require_alpha(alpha)
    counts, rng, most = np.bincount(codes), np.random.default_rng(seed), 0
    for _ in range(MAX_DRAWS):
        portions = rng.dirichlet(np.full(clients, alpha), len(counts))
        cuts = np.floor(portions.cumsum(axis=1) * counts[:, None]).astype(np.int64)
        cuts[:, -1] = counts  # the sum of portions is 1 up to rounding
        sizes = np.diff(np.minimum(cuts, counts[:, None]), axis=1, prepend=0)
        smallest = int(sizes.sum(axis=0).min())
        if smallest >= min_size:
            return deal(codes, sizes, rng)
        most = max(most, smallest)
    raise PartitionError(
        f"expected at least {min_size} examples for each of {clients} clients; in {MAX_DRAWS} draws with alpha = "
        f"{alpha:g} the smallest client had {most} at most. Take a larger alpha, fewer clients or a smaller minimum"
    )


def dirichlet_balanced(labels: Any, clients: int, alpha: float, *, seed: int = 0, min_size: int = 1) -> Partition:
    """Give clients the same number of examples, each with a label distribution of its own from a Dirichlet.

    Client by client, a distribution q over the labels is drawn from Dir(alpha · p), where p are the labels' shares in
    all examples, and examples are drawn by q without replacement (Hsu et al., 2019, arXiv:1909.06335, whose alpha this
    is). Labels that have run out are left out of q, so the last clients take what is left.

    Args:
        labels: One label per example: numbers or strings; a list, or an array of any library.
        clients: The number of clients.
        alpha: The concentration, > 0. Towards 0, a client has one label; towards infinity, all labels as they occur.
        seed: The seed. The result is a function of it and of the other arguments. Default: 0.
        min_size: The least number of examples of a client. Sizes differ by at most 1. Default: 1.

    Returns:
        For each client, the indices of its examples, ascending. Each index is in exactly one of them.

    Raises:
        PartitionError: An argument is invalid, or there are too few examples.

    Example:
        >>> [len(part) for part in dirichlet_balanced(["cat", "dog"] * 5, clients=3, alpha=1.0)]
        [4, 3, 3]
    """
    _, codes = label_codes(labels)
    require_sizes(len(codes), clients, min_size)
    require_alpha(alpha)
    counts, rng = np.bincount(codes), np.random.default_rng(seed)
    left, sizes = counts.copy(), np.zeros((len(counts), clients), np.int64)
    for client in range(clients):
        size = len(codes) // clients + (client < len(codes) % clients)
        sizes[:, client] = _draw(rng.dirichlet(alpha * counts / len(codes)), left, size, rng)
        left -= sizes[:, client]
    return deal(codes, sizes, rng)


def _draw(q: npt.NDArray[np.float64], left: Indices, size: int, rng: np.random.Generator) -> Indices:
    """Draw `size` labels by the distribution q, at most `left` of each."""
    drawn = np.zeros_like(left)
    while missing := size - int(drawn.sum()):
        room = left - drawn
        odds = np.where(room > 0, q, 0.0)
        if odds.sum() < 1e-12:  # all labels of q have run out
            odds = room.astype(np.float64)
        drawn += np.minimum(rng.multinomial(missing, odds / odds.sum()), room)
    return drawn
