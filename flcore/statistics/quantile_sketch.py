"""A mergeable sketch of quantiles with a bounded relative error: DDSketch.

Masson, Rim and Lee, 2019, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", PVLDB
12(12), arXiv:1908.10693.

Bucket i of positive values holds those in (g^(i-1), g^i], with g = (1 + e) / (1 - e) for a relative error e. Its
estimate 2 g^i / (g + 1) is within e of each of them. Negative values have buckets of their own, by magnitude, and zero
has one. The edges are the same everywhere, so that sketches are merged by adding counts. Buckets are stored sparsely,
and are not collapsed.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Bucket(NamedTuple):
    """A bucket: the sign of its values (-1, 0 or 1), and the number i of their magnitude."""

    sign: int
    number: int

    @property
    def position(self) -> tuple[int, int]:
        """Its place in the order of values."""
        return self.sign, self.sign * self.number


Counts = dict[Bucket, int]
"""The number of values in each bucket that has some."""


def count_in_buckets(values: npt.NDArray[np.float64], relative_error: float) -> Counts:
    """Return the sketch of finite values.

    >>> count_in_buckets(np.array([0.0, 1.0, 1.0]), 0.01)
    {Bucket(sign=0, number=0): 1, Bucket(sign=1, number=0): 2}
    """
    signs = np.sign(values).astype(np.int64)
    magnitudes = np.abs(values, where=signs != 0, out=np.ones_like(values))
    numbers = np.ceil(np.log(magnitudes) / _log_base(relative_error)).astype(np.int64)
    found, counts = np.unique(np.stack([signs, numbers], axis=1), axis=0, return_counts=True)
    return {Bucket(sign, number): count for (sign, number), count in zip(found.tolist(), counts.tolist(), strict=True)}


def merge_small_buckets(counts: Counts, min_count: int) -> Counts:
    """Move the values of small buckets upwards, until each bucket that is left has `min_count` values.

    The last values go to the highest bucket that is left. Fewer than `min_count` values pass any edge, so that no rank
    changes by as much.

    >>> merge_small_buckets({Bucket(1, 1): 1, Bucket(1, 2): 2, Bucket(1, 3): 1}, 3)
    {Bucket(sign=1, number=2): 4}
    """
    merged: Counts = {}
    moved, last = 0, None
    for bucket in sorted(counts, key=lambda bucket: bucket.position):
        moved += counts[bucket]
        if moved >= min_count:
            merged[bucket], moved, last = moved, 0, bucket
    if last is not None:
        merged[last] += moved
    return merged


def add_sketches(sketches: Iterable[Mapping[Bucket, int]]) -> Counts:
    """Return the sketch of all values of several."""
    total: Counts = {}
    for sketch in sketches:
        for bucket, count in sketch.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile(counts: Mapping[Bucket, int], q: float, relative_error: float) -> float:
    """Estimate a quantile: the value of rank floor(q (n - 1)), as `numpy.quantile(method="lower")` takes it.

    Args:
        counts: A sketch with values.
        q: From 0 to 1.
        relative_error: The one that the sketch was made with.
    """
    rank, seen = math.floor(q * (sum(counts.values()) - 1)), 0
    for bucket in sorted(counts, key=lambda bucket: bucket.position):
        seen += counts[bucket]
        if seen > rank:
            return _estimate(bucket, relative_error)
    raise ValueError("expected a sketch with values, got an empty one")


def _estimate(bucket: Bucket, relative_error: float) -> float:
    # 2 g^i / (g + 1) = (1 - e) g^i
    return bucket.sign * (1 - relative_error) * math.exp(bucket.number * _log_base(relative_error))


def _log_base(relative_error: float) -> float:
    return math.log1p(relative_error) - math.log1p(-relative_error)
