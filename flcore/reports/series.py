"""The series of a run that figures and reports draw: metrics, sites, phases and bytes, by round."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from flcore.server.history import RoundRecord

Points = list[tuple[int, float]]
"""Rounds and values, in the order of rounds."""

LARGEST_DRAWN, SMALLEST_DRAWN = 1e100, 1e-100
"""A larger value has no point, as the range of an axis would overflow; a smaller one is drawn as 0."""

MAX_PHASES = 12
"""The most phases that are drawn and listed. The shorter ones are part of the rest."""

WHOLE_ROUND = "round"
"""The phase of `RoundRecord.seconds` that is the whole round."""

REST = "other"
"""The part of a round that is in no phase."""

MIN_ROUNDS_SHARE = 0.05
"""A site that took part in fewer of the rounds is no outlier: a few values say too little."""

OUTLIER_SCORE = 3.5
"""Distance from the median, in robust standard deviations, beyond which a site is named (Iglewicz, Hoaglin, 1993)."""


class SiteSpread(NamedTuple):
    """The sites' values in one round."""

    round: int
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class SiteSeries:
    """One value of the sites, by round.

    Attributes:
        name: The metric, or "seconds".
        by_site: The points of each site, in the order of names.
        spread: Lowest value, median and highest value, by round.
        outliers: The sites that are farthest from the others, farthest first.
    """

    name: str
    by_site: Mapping[str, Points]
    spread: Sequence[SiteSpread]
    outliers: Sequence[str]

    def spread_without(self, sites: Collection[str]) -> list[SiteSpread]:
        """Return the spread of the other sites, by round. Rounds without another site are left out."""
        return spread_of({name: points for name, points in self.by_site.items() if name not in sites})


def spread_of(by_site: Mapping[str, Points]) -> list[SiteSpread]:
    """Return lowest value, median and highest value of sites by round."""
    return [SiteSpread(number, min(each), median(each), max(each)) for number, each in _by_round(by_site).items()]


def _by_round(by_site: Mapping[str, Points]) -> dict[int, list[float]]:
    rounds: dict[int, list[float]] = {}
    for points in by_site.values():
        for number, value in points:
            rounds.setdefault(number, []).append(value)
    return dict(sorted(rounds.items()))


def metric_names(history: Iterable[RoundRecord]) -> list[str]:
    """Return the names of the metrics, averaged over clients: those of validation first."""
    validated = [name for record in history for name in record.validate]
    trained = [name for record in history for name in record.train]
    return list(dict.fromkeys([*validated, *trained]))


def metric_points(history: Iterable[RoundRecord], kind: str, name: str) -> Points:
    """Return a metric by round: of `kind` "train" or "validate". Rounds without it have no point."""
    found = ((record.round, _drawable(getattr(record, kind).get(name))) for record in history)
    return [(number, value) for number, value in found if value is not None]


def _drawable(value: float | None) -> float | None:
    """Return a value as it is drawn; None for one that is missing, not finite or too large."""
    if value is None or not abs(value) <= LARGEST_DRAWN:
        return None
    return value if abs(value) >= SMALLEST_DRAWN else 0.0


def site_series(history: Sequence[RoundRecord], max_outliers: int = 4) -> list[SiteSeries]:
    """Return the clients' metrics of training, each as a series, and last their seconds."""
    metrics = dict.fromkeys(name for record in history for each in record.updates.values() for name in each.metrics)
    values: list[tuple[str, dict[str, Points]]] = []
    for name in metrics:
        points: dict[str, Points] = {}
        for record in history:
            for client, update in record.updates.items():
                value = _drawable(update.metrics.get(name))
                if value is not None:
                    points.setdefault(client, []).append((record.round, value))
        values.append((name, points))
    seconds: dict[str, Points] = {}
    for record in history:
        for client, update in record.updates.items():
            seconds.setdefault(client, []).append((record.round, update.seconds))
    return [_site_series(name, points, max_outliers) for name, points in [*values, ("seconds", seconds)] if points]


def _site_series(name: str, by_site: dict[str, Points], max_outliers: int) -> SiteSeries:
    rounds, spread = _by_round(by_site), spread_of(by_site)
    deviations = {number: _robust_deviation(each) for number, each in rounds.items()}
    middle = {each.round: each.median for each in spread}
    scores: dict[str, float] = {}
    for client, points in by_site.items():
        if len(points) >= MIN_ROUNDS_SHARE * len(rounds):
            scores[client] = abs(median(_score(v - middle[number], deviations[number]) for number, v in points))
    farthest = sorted((name for name in scores if scores[name] > OUTLIER_SCORE), key=lambda each: (-scores[each], each))
    return SiteSeries(name, dict(sorted(by_site.items())), spread, farthest[:max_outliers])


def _robust_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of normal values with this median absolute deviation."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def _score(difference: float, deviation: float) -> float:
    if difference == 0:
        return 0.0
    return math.copysign(math.inf, difference) if deviation == 0 else difference / deviation


def phase_seconds(history: Sequence[RoundRecord]) -> dict[str, list[float]]:
    """Return the seconds of the longest phases in each round, in the order of phases; last, what is in none of them.

    A phase that a round lacks took 0 s in it. Phases may overlap: then nothing is left for the rest.
    """
    totals: dict[str, float] = {}
    for record in history:
        for name, seconds in record.seconds.items():
            if name != WHOLE_ROUND:
                totals[name] = totals.get(name, 0.0) + seconds
    longest = set(sorted(totals, key=lambda name: -totals[name])[:MAX_PHASES])
    names = [name for name in totals if name in longest]
    found = {name: [record.seconds.get(name, 0.0) for record in history] for name in names}
    rest = [
        max(0.0, record.seconds.get(WHOLE_ROUND, 0.0) - sum(record.seconds.get(name, 0.0) for name in names))
        for record in history
    ]
    return found | ({REST: rest} if any(rest) else {})


def round_seconds(history: Iterable[RoundRecord]) -> list[float]:
    """Return the seconds of each round."""
    return [record.seconds.get(WHOLE_ROUND, sum(record.seconds.values())) for record in history]


def binned(values: Sequence[float], bins: int) -> list[float]:
    """Return the means of at most `bins` groups of neighbours, of equal size but for the last.

    >>> binned([1.0, 3.0, 5.0, 7.0, 9.0], 3)
    [2.0, 6.0, 9.0]
    """
    size = bin_size(len(values), bins)
    groups = [values[first : first + size] for first in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]


def bin_size(count: int, bins: int) -> int:
    """Return the size of the groups in which `count` values make at most `bins` groups."""
    return max(1, math.ceil(count / bins))


def thinned(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """Return at most about `limit` points of a line that look like all: the lowest and the highest of each group."""
    if len(points) <= limit:
        return list(points)
    size = bin_size(len(points), limit // 2)
    kept: set[int] = {0, len(points) - 1}
    for first in range(0, len(points), size):
        group = range(first, min(first + size, len(points)))
        kept |= {min(group, key=lambda each: points[each][1]), max(group, key=lambda each: points[each][1])}
    return [points[index] for index in sorted(kept)]


def upper_limit(values: Iterable[float]) -> float | None:
    """Return where to cut an axis, if a few values are so large that the others would be flat. None: nowhere."""
    found = sorted(value for value in values if math.isfinite(value))
    if len(found) < 10:
        return None
    usual = found[int(0.97 * (len(found) - 1))]
    return 1.25 * usual if usual > 0 and found[-1] > 3 * usual else None
