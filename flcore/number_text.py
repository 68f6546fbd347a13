"""Numbers as text: metrics, bytes and seconds, alone, in a line, or aligned in a column."""

import math
from collections.abc import Callable, Iterable, Mapping

from flcore.text import printable

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")

MAX_METRICS_SHOWN = 8
"""The most metrics in a line."""

MAX_NAME_CHARACTERS = 32
"""The most characters of a metric's name in a line. Clients give the names."""


def metric_text(value: float) -> str:
    """Return a metric's value, with four significant digits.

    >>> metric_text(0.9642857), metric_text(123456.0)
    ('0.9643', '1.235e+05')
    """
    return f"{value:.4g}"


def metrics_text(metrics: Mapping[str, float], most: int = MAX_METRICS_SHOWN) -> str:
    """Return metrics in a line, at most `most` of them; empty if there are none.

    >>> metrics_text({"loss": 0.25, "accuracy": 0.93333, "auc": 0.5}, most=2)
    'loss 0.25, accuracy 0.9333 and 1 more'
    """
    first = list(metrics.items())[:most]
    shown = ", ".join(f"{printable(name, MAX_NAME_CHARACTERS)} {metric_text(value)}" for name, value in first)
    return shown + (f" and {len(metrics) - most} more" if len(metrics) > most else "")


def bytes_text(nbytes: float) -> str:
    """Return a number of bytes, in powers of 1000.

    >>> bytes_text(936_384), bytes_text(4_000_000_000), bytes_text(12)
    ('936 kB', '4.00 GB', '12 B')
    """
    unit, scaled = byte_unit(nbytes), float(nbytes)
    scaled /= 1000 ** BYTE_UNITS.index(unit)
    return f"{scaled:.0f} B" if unit == "B" else f"{scaled:.{max(0, 2 - int(math.log10(max(scaled, 1))))}f} {unit}"


def byte_unit(nbytes: float) -> str:
    """Return the largest unit that is not larger than a number of bytes."""
    power = 0 if nbytes < 1 else min(len(BYTE_UNITS) - 1, int(math.log10(nbytes) / 3 + 1e-9))
    return BYTE_UNITS[power]


def seconds_text(seconds: float) -> str:
    """Return a duration that was measured.

    >>> seconds_text(0.0712), seconds_text(75.3), seconds_text(7325)
    ('0.071 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    return duration_text(seconds)


def duration_text(seconds: float) -> str:
    """Return a duration in whole seconds; from an hour on, in minutes.

    >>> duration_text(9.6), duration_text(130), duration_text(3_840)
    ('10 s', '2 min 10 s', '1 h 04 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02} min"


def share_text(share: float) -> str:
    """Return a share of a whole in percent.

    >>> share_text(0.25)
    '25 %'
    """
    return f"{100 * share:.0f} %"


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
