"""Order statistics: rules that take the middle of each coordinate, so that a few wild updates do not move the result.

They are computed by the kernels of `flcore_kernels.order`, on the CPU, column by column. So the bits of a result do not
depend on the order of the clients, on threads, or on how the model is divided into ranges.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flcore_kernels
import numpy as np
from flcore_kernels import storage_dtype

from flcore.errors import WeightError
from flcore.rules.arguments import require_bool, require_count
from flcore.rules.kinds import Columns, Rule, Values

Kernel = Callable[..., None]


def median(*, weighted: bool = True) -> Rule:
    """The coordinate-wise median (Yin et al., 2018, arXiv:1803.01498).

    Definition 1 of the paper, per coordinate k: result[k] = med {update_i[k]}. For an even number of updates it is the
    mean of the two values in the middle. With weights w_i, it is the smallest value at which half of the weight is
    reached, and the mean of this value and the next larger one where exactly half is reached.

    Tolerance: hostile updates with less than half of the weight; with weighted=false, fewer than half of the updates.
    The result is then, in each coordinate, not outside the values of the others.
    Weights: count by default, so bound them (`max_share`). weighted=false ignores them.
    Integers: rounded half to even.
    Memory: all updates' elements of a range at once; the plan batch. Passes over the updates: 1.
    """
    require_bool("median", "weighted", weighted)
    return Columns(
        "median" if weighted else "median(weighted=false)", _combining(flcore_kernels.median, weighted=weighted)
    )


def trimmed_mean(f: int, *, weighted: bool = True) -> Rule:
    """The coordinate-wise mean without the f smallest and the f largest values (Yin et al., 2018, arXiv:1803.01498).

    Definition 2 of the paper, with beta = f / n for n updates, per coordinate k: result[k] = the sum of the n - 2f
    values that are left, divided by n - 2f. With weights w_i, the share beta of the weight is cut from each side, and a
    value on the border counts with what is left of its weight.

    Tolerance: hostile updates with at most the share f / n of the weight; with weighted=false, f hostile updates.
    Needs 2f + 1 updates or more.
    Weights: count by default, so bound them (`max_share`). weighted=false ignores them.
    Integers: rounded half to even.
    Memory: all updates' elements of a range at once; the plan batch. Passes over the updates: 1.
    """
    require_count("trimmed_mean", "f", f)
    require_bool("trimmed_mean", "weighted", weighted)

    def trim(*arguments: Any, **options: Any) -> None:
        flcore_kernels.trimmed_mean(*arguments, trim=f, **options)

    name = f"trimmed_mean(f={f})" if weighted else f"trimmed_mean(f={f}, weighted=false)"
    return Columns(name, _combining(trim, weighted=weighted), min_updates=2 * f + 1)


def meamed(f: int) -> Rule:
    """The coordinate-wise mean around the median (Xie et al., 2018, arXiv:1802.10116, "MeaMed").

    Per coordinate: the mean of the n - f values that are nearest to the median of all n. Of two that are equally near,
    the smaller one counts.

    Tolerance: f hostile updates. Needs 2f + 1 updates or more.
    Weights: ignored. Integers: rounded half to even.
    Memory: all updates' elements of a range at once; the plan batch. Passes over the updates: 1.
    """
    require_count("meamed", "f", f)
    return mean_around_median(f"meamed(f={f})", lambda count: count - f, 2 * f + 1)


def mean_around_median(name: str, keep: Callable[[int], int], min_updates: int = 1) -> Columns:
    """Return the rule that takes the mean of the `keep(n)` values of n that are nearest to the median."""

    def combine(columns: Sequence[Values], _: Sequence[float]) -> Values:
        dtype, out = columns[0].dtype.name, np.empty(columns[0].size, np.float64)
        operands = [column.view(storage_dtype(dtype)) for column in columns]
        flcore_kernels.mean_around_median(operands, out, dtype, keep=keep(len(columns)), result="float64")
        return out

    return Columns(name, combine, min_updates)


def _combining(kernel: Kernel, *, weighted: bool) -> Callable[[Sequence[Values], Sequence[float]], Values]:
    """Return the `combine` of a kernel. Its result is in float64: the engine adds a base, and rounds to the dtype."""

    def combine(columns: Sequence[Values], weights: Sequence[float]) -> Values:
        if not any(weights):
            raise WeightError(f"the weights of all {len(weights)} updates are zero")
        dtype, out = columns[0].dtype.name, np.empty(columns[0].size, np.float64)
        operands = [column.view(storage_dtype(dtype)) for column in columns]
        kernel(operands, out, dtype, weights=weights if weighted else None, result="float64")
        return out

    return combine
