"""Labels beside the ends of lines: at the height of the end, and pushed apart where they would overlap."""

from collections.abc import Sequence


def pushed_apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return heights that are at least `gap` apart and within the range, as near to the given ones as one pass finds.

    Args:
        heights: The wanted heights, in any order.
        gap: The smallest distance.
        low: The lowest height.
        high: The highest height. With too many labels for the range, they go beyond it.

    >>> pushed_apart([1.0, 1.2, 5.0], 1.0, 0.0, 5.0)
    [1.0, 2.0, 5.0]
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = [0.0] * len(heights)
    below = low - gap
    for index in order:
        below = placed[index] = max(heights[index], below + gap)
    above = max(high, low + gap * (len(heights) - 1)) + gap
    for index in reversed(order):
        above = placed[index] = min(placed[index], above - gap)
    return placed


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters. What is left out is in its middle, as names differ at their ends.

    >>> shortened("hospital-of-the-north-17", 13)
    'hospit\u2026rth-17'
    """
    if len(text) <= limit:
        return text
    kept = limit - 1
    return f"{text[: kept - kept // 2]}\u2026{text[len(text) - kept // 2 :]}"
