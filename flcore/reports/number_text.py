"""Numbers as text: metrics and seconds, alone or aligned in a column."""

import math
from collections.abc import Callable, Iterable


def metric_text(value: float) -> str:
    """Return a metric's value, with four significant digits.

    >>> metric_text(0.9642857), metric_text(123456.0)
    ('0.9643', '1.235e+05')
    """
    return f"{value:.4g}"


def seconds_text(seconds: float) -> str:
    """Return a duration.

    >>> seconds_text(0.0712), seconds_text(75.3), seconds_text(7325)
    ('0.071 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"


def column_format(values: Iterable[float]) -> Callable[[float], str]:
    """Return a function that formats the values of a column with equally many decimals, so that they align.

    >>> [column_format([0.5, 12.25])(each) for each in (0.5, 12.25)]
    ['0.500', '12.250']
    """
    sizes = [abs(float(value)) for value in values if value and math.isfinite(value)]
    if not sizes or not 1e-3 <= max(sizes) < 1e9:
        return metric_text
    if all(size.is_integer() for size in sizes):
        return lambda value: f"{value:,.0f}"
    decimals = max(0, 4 - max(0, math.floor(math.log10(max(sizes)))))
    return lambda value: f"{value:,.{decimals}f}"


def seconds_format(values: Iterable[float]) -> Callable[[float], str]:
    """Return a function that formats the durations of a column alike, so that they align.

    >>> [seconds_format([0.07, 2.5])(each) for each in (0.07, 2.5)]
    ['0.070 s', '2.500 s']
    """
    longest = max(values, default=0.0)
    if longest >= 60:
        return seconds_text
    decimals = 3 if longest < 10 else 2
    return lambda value: f"{value:.{decimals}f} s"
