"""A site's part of federated statistics. Groups below a smallest count are suppressed here, before anything is sent.

The part is a mapping of metrics, `KIND:COLUMN`:

    count:age, mean:age, deviation:age   the number of values, their mean, their standard deviation (ddof 0)
    bin.3:age                            the values in bin 3 of the histogram; 0 is below the first edge
    positive.57:age, negative.57:age, zero:age   the values in a bucket of the quantile sketch
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.client.task import Site, Task, Update
from flcore.errors import JobError
from flcore.statistics.plan import StatisticsPlan, require_count
from flcore.statistics.quantile_sketch import Bucket, count_in_buckets, merge_small_buckets

MAX_MAGNITUDE = 1e30
"""The largest magnitude of a value: a server takes no larger metric."""

MAX_COLUMN_NAME = 100
"""In characters."""

SIGNS = {1: "positive", -1: "negative"}


def site_statistics(columns: Mapping[str, Any], task: Task) -> Update:
    """Compute a site's part of federated statistics.

    The task's hyperparameters say what is computed (`StatisticsPlan`). The site can raise the smallest count: with
    `min_count` in the table `[statistics]` of its site.toml, the larger one holds.

    - A column of fewer than `min_count` values is left out.
    - A bin of fewer values is left out. If their number would follow from the count of the column, the smallest other
      bins are left out, too.
    - A bucket of the quantile sketch with fewer values is merged into the next one.
    - The smallest and the largest value are not sent. The server reads both from the sketch.

    Args:
        columns: Arrays of numbers, by the name of the column. NaN is a missing value, and is not counted. A group of
            rows is a column of its own, such as "age of women".
        task: The task.

    Returns:
        The update, with the weight 1.

    Raises:
        JobError: A hyperparameter is wrong.
        ValueError: A column has no numbers, or infinite or too large ones. The message has no value of the column.

    Example:
        The code of a job::

            import numpy as np
            from flcore.statistics import site_statistics

            def statistics(model, task):
                age, weight = np.loadtxt(task.site.config["data"], delimiter=",", unpack=True)
                return site_statistics({"age": age, "weight": weight}, task)
    """
    plan = StatisticsPlan.of(task.hyperparameters)
    min_count = max(plan.min_count, _site_min_count(task.site))
    metrics: dict[str, float] = {}
    for name, column in columns.items():
        values = _values(name, column)
        if len(values) >= min_count:
            described = _describe(values, plan, plan.bins.get(name), min_count)
            metrics |= {f"{kind}:{name}": value for kind, value in described.items()}
    return Update(weight=1.0, metrics=metrics)


def no_model(_: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the model of a job that has none: one byte. In job.toml: `model = "flcore.statistics:no_model"`."""
    return {"none": np.zeros(1, np.uint8)}


def suppress_small_bins(counts: list[int], min_count: int) -> dict[int, int]:
    """Return the bins that may be sent, by number.

    All bins that are left out hold no value together, or at least `min_count`: the receiver knows their sum.

    >>> suppress_small_bins([50, 0, 3, 12], min_count=10)
    {0: 50}
    """
    by_count = sorted(range(len(counts)), key=lambda number: (counts[number], number))
    suppressed = sum(count for count in counts if count < min_count)
    sent = [number for number in by_count if counts[number] >= min_count]
    while sent and 0 < suppressed < min_count:
        suppressed += counts[sent.pop(0)]
    return {number: counts[number] for number in sorted(sent)}


def bucket_kind(bucket: Bucket) -> str:
    """Return the kind of the metric that counts a bucket's values.

    >>> bucket_kind(Bucket(-1, 57)), bucket_kind(Bucket(0, 0))
    ('negative.57', 'zero')
    """
    return f"{SIGNS[bucket.sign]}.{bucket.number}" if bucket.sign else "zero"


def _site_min_count(site: Site) -> int:
    table = site.config.get("statistics", {})
    if not isinstance(table, Mapping):
        raise JobError(f"site.toml: expected a table [statistics], got {type(table).__name__}")
    return require_count(table.get("min_count", 1))


def _values(name: object, column: Any) -> npt.NDArray[np.float64]:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_COLUMN_NAME or not name.isprintable():
        raise ValueError(f"expected a column's name, 1 to {MAX_COLUMN_NAME} characters that can be printed")
    try:
        array = np.asarray(column)
        values = array.astype(np.float64, casting="unsafe" if array.dtype.kind == "O" else "same_kind").reshape(-1)
    except (TypeError, ValueError):
        # NumPy's message quotes a value, and the message of an exception goes to the server.
        raise ValueError(f"column {name!r}: expected numbers") from None
    values = values[~np.isnan(values)]
    if len(values) and not np.abs(values).max() <= MAX_MAGNITUDE:
        raise ValueError(f"column {name!r}: expected values of at most {MAX_MAGNITUDE:g}, got larger or infinite ones")
    return values


def _describe(
    values: npt.NDArray[np.float64], plan: StatisticsPlan, edges: tuple[float, ...] | None, min_count: int
) -> dict[str, float]:
    described: dict[str, float] = {
        "count": len(values),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
    }
    if edges is not None:
        bins = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        described |= {f"bin.{number}": count for number, count in suppress_small_bins(bins.tolist(), min_count).items()}
    sketch = merge_small_buckets(count_in_buckets(values, plan.relative_error), min_count)
    return described | {bucket_kind(bucket): count for bucket, count in sketch.items()}
