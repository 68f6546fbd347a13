"""A bound on the share of one update in a weighted sum: its weight is capped until the bound holds."""

import math
from collections.abc import Sequence

from flcore.errors import AggregationError


def cap_weights(weights: Sequence[float], max_share: float) -> list[float]:
    """Return weights of which none is more than `max_share` of their sum. The others stay as they are.

    With the k largest weights capped to c and a sum R of the others, the bound c = max_share · (k · c + R) gives
    c = max_share · R / (1 - k · max_share). The solution has the smallest k for which no other weight is above c.
    Capping one weight lowers the sum, and with it the cap of all, so the shares cannot be capped one by one.

    Args:
        weights: The weights, finite and >= 0.
        max_share: The largest share, in (0, 1].

    Returns:
        The capped weights, in the same order.

    Raises:
        AggregationError: There are fewer weights above 0 than 1 / `max_share`, so at least one share is larger.

    Example:
        >>> cap_weights([100.0, 10.0, 10.0], 0.5)
        [20.0, 10.0, 10.0]
    """
    descending = sorted(weights, reverse=True)
    count = sum(weight > 0 for weight in weights)
    if count and count * max_share < 1:
        raise AggregationError(
            f"max_share = {max_share:g} needs at least {math.ceil(1 / max_share)} updates with a weight above 0, "
            f"there are {count}: allow a larger share, or require more updates"
        )
    for capped in range(count):
        share_left = 1 - capped * max_share
        if share_left <= 0:  # 1 / max_share weights are capped, and the others weigh nothing beside them
            break
        cap = max_share * math.fsum(descending[capped:]) / share_left
        if descending[capped] <= cap:
            return [min(weight, cap) for weight in weights] if capped else list(weights)
    return [min(weight, descending[count - 1]) for weight in weights] if count else list(weights)
