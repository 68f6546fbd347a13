"""The statistics of all sites, from the parts that they have sent (`site_statistics`)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flcore.statistics.plan import StatisticsPlan
from flcore.statistics.quantile_sketch import Bucket, Counts, add_sketches, quantile
from flcore.statistics.site_statistics import SIGNS

MAX_COUNT = 2**53
"""Counts travel as float64."""

_BIN = re.compile(r"bin\.(\d{1,6})")
_BUCKET = re.compile(r"(positive|negative)\.(-?\d{1,9})")
_SIGN_OF = {word: sign for sign, word in SIGNS.items()}


@dataclass
class SiteColumn:
    """A site's part of one column."""

    count: int = 0
    mean: float = math.nan
    deviation: float = math.nan
    bins: dict[int, int] = field(default_factory=dict)
    sketch: Counts = field(default_factory=dict)


def parse_part(metrics: Mapping[str, float], plan: StatisticsPlan) -> dict[str, SiteColumn]:
    """Return a site's part, by column. Raises `ValueError` for one that `site_statistics` cannot have made."""
    columns: dict[str, SiteColumn] = {}
    for name, value in metrics.items():
        kind, _, column = name.partition(":")
        _take(columns.setdefault(column, SiteColumn()), kind, value, name, plan.min_count)
    for name, part in columns.items():
        edges = plan.bins.get(name, ())
        if not (part.count and math.isfinite(part.mean) and part.deviation >= 0):
            raise ValueError(f"column {name!r}: expected a count, a mean and a deviation")
        if sum(part.sketch.values()) != part.count:
            raise ValueError(f"column {name!r}: the buckets of its sketch do not add up to its count")
        if sum(part.bins.values()) > part.count or any(number > len(edges) for number in part.bins):
            raise ValueError(f"column {name!r}: its bins do not match its count, or the edges of the contract")
    return columns


def _take(part: SiteColumn, kind: str, value: float, name: str, min_count: int) -> None:
    """Take one metric of a part."""
    if kind in ("mean", "deviation"):
        setattr(part, kind, value)
        return
    if not (float(value).is_integer() and min_count <= value <= MAX_COUNT):
        raise ValueError(f"metric {name!r}: expected a whole number, at least min_count = {min_count}, got {value:g}")
    if kind == "count":
        part.count = int(value)
    elif kind == "zero":
        part.sketch[Bucket(0, 0)] = int(value)
    elif found := _BIN.fullmatch(kind):
        part.bins[int(found[1])] = int(value)
    elif found := _BUCKET.fullmatch(kind):
        part.sketch[Bucket(_SIGN_OF[found[1]], int(found[2]))] = int(value)
    else:
        raise ValueError(f"metric {name!r}: expected a metric of `flcore.statistics.site_statistics`")


def merge_parts(parts: Mapping[str, Mapping[str, SiteColumn]], plan: StatisticsPlan) -> dict[str, Any]:
    """Return the statistics of all sites' values, as JSON values by column.

    Counts and bins are exact. Mean and variance are rounded a few times. Quantiles, minimum and maximum have the
    relative error of the plan; a rank is wrong by less than `min_count` for each site.

    Args:
        parts: The sites' parts, by site and column.
        plan: What is computed.
    """
    names = sorted({column for part in parts.values() for column in part})
    by_column = {name: [parts[site][name] for site in sorted(parts) if name in parts[site]] for name in names}
    return {name: _merge_column(columns, plan, plan.bins.get(name)) for name, columns in by_column.items()}


def _merge_column(parts: list[SiteColumn], plan: StatisticsPlan, edges: tuple[float, ...] | None) -> dict[str, Any]:
    count = sum(part.count for part in parts)
    mean = math.fsum(part.count * part.mean for part in parts) / count
    # The law of total variance: squares of deviations alone are added, so nothing large is subtracted.
    squares = math.fsum(part.count * (part.deviation**2 + (part.mean - mean) ** 2) for part in parts)
    sketch = add_sketches(part.sketch for part in parts)
    merged = {
        "sites": len(parts),
        "count": count,
        "mean": mean,
        "variance": squares / count,
        "minimum": quantile(sketch, 0.0, plan.relative_error),
        "maximum": quantile(sketch, 1.0, plan.relative_error),
        "quantiles": {f"{q:g}": quantile(sketch, q, plan.relative_error) for q in plan.quantiles},
    }
    if edges is not None:
        bins = [sum(part.bins.get(number, 0) for part in parts) for number in range(len(edges) + 1)]
        merged["histogram"] = {"edges": list(edges), "counts": bins, "suppressed": count - sum(bins)}
    return merged
