"""Label skew from shards: each client gets a few runs of examples sorted by label."""

from typing import Any

import numpy as np

from flcore.errors import PartitionError
from flcore.partition.labels import Partition, label_codes, require_sizes


def shards(labels: Any, clients: int, per_client: int = 2, *, seed: int = 0, min_size: int = 1) -> Partition:
    """Sort the examples by label, cut them into equal shards, and deal each client the same number of shards.

    The non-IID partition of McMahan et al. (2017, arXiv:1602.05629). A shard spans two labels where a cut does not fall
    on a border, so a client has about `per_client` labels.

    Args:
        labels: One label per example: numbers or strings; a list, or an array of any library.
        clients: The number of clients.
        per_client: The number of shards of each client. Default: 2, as in the paper.
        seed: The seed. The result is a function of it and of the other arguments. Default: 0.
        min_size: The least number of examples of a client. Sizes of shards differ by at most 1. Default: 1.

    Returns:
        For each client, the indices of its examples, ascending. Each index is in exactly one of them.

    Raises:
        PartitionError: An argument is invalid, or there are too few examples.

    Example:
        >>> parts = shards([0, 0, 1, 1, 2, 2], clients=3, per_client=1)
        >>> sorted(part.tolist() for part in parts)
        [[0, 1], [2, 3], [4, 5]]
    """
    _, codes = label_codes(labels)
    require_sizes(len(codes), clients, min_size)
    if per_client < 1:
        raise PartitionError(f"per_client: expected a number >= 1, got {per_client}")
    count = clients * per_client
    least = len(codes) // count * per_client
    if len(codes) < count:
        raise PartitionError(
            f"per_client: expected at most {len(codes) // clients}, as {len(codes):,} examples for {clients:,} clients "
            f"make no more shards, got {per_client:,}; take fewer shards or fewer clients"
        )
    if least < min_size:
        raise PartitionError(
            f"{len(codes)} examples in {count} shards of {len(codes) // count} or more give a client at least {least}: "
            f"expected at least {max(min_size, per_client)}; take fewer clients or shards, or a smaller minimum"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(codes))
    by_label = shuffled[np.argsort(codes[shuffled], kind="stable")]
    pieces, order = np.array_split(by_label, count), rng.permutation(count)
    dealt = order.reshape(clients, per_client)
    return [np.sort(np.concatenate([pieces[shard] for shard in own])).astype(np.int64) for own in dealt]
