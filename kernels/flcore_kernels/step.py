"""A server optimizer's step in one pass: it reads a mean, a base and a state, and writes a model and a new state.

The change, mean − base, is computed in float64. The rest is, too, unless mean (or total) and model are float32: then
each operation of `optimizers`' equations is rounded to float32, as PyTorch does it. The model follows from the new
state before that is rounded to its dtype.

Accuracy, relative to the terms of each sum: in float64, a result has the error of one rounding to its dtype, and of
2^-49 at most. In float32, the new state and the update of the model have an error of 2^-21 at most. Measured on one
thread of a busy machine, Adam took 3.7 ns per element in float64, and 1.9 in float32.

A result depends on its element alone: not on threads, or on which elements are computed together.

Steps have no CUDA twin yet, so `step` is a function, and not a verb of `Backend`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flcore_kernels.backend import Operand
from flcore_kernels.call_checks import divisor_of, require_within
from flcore_kernels.dtypes import lookup
from flcore_kernels.error_location import values_of
from flcore_kernels.errors import BadState, BufferMismatch, KernelError, NotFinite, Overflow
from flcore_kernels.optimizers import Optimizer
from flcore_kernels.rows import (
    Addresses,
    Numbers,
    Rows,
    address_of,
    addresses_of,
    buffers_of,
    require_writable,
    sizes_of,
)
from flcore_kernels.scratch import scratch
from flcore_kernels.threads import shared_pool
from flcore_kernels.totals import Total

ROW_ELEMENTS, EXACT_ROW_ELEMENTS = 1 << 16, 1 << 15
"""Elements of a row at most. The means of an exact total lie in the second-level cache between two kernels: 256 KiB."""

SLOTS = 2
"""Arrays of a state at most."""

KEPT_BASE = {"models": 1.0, "differences": 0.0}
"""The factor of the base in the change: change = mean − factor · base."""


def state_dtype(dtype: str) -> str:
    """Return the dtype of an optimizer's state: float64 for models of float64, float32 for other floats.

    Args:
        dtype: The dtype of the model.

    Raises:
        BufferMismatch: Integers and quantized values have no steps.
        UnknownDType: There is no such dtype.

    Example:
        >>> state_dtype("bfloat16")
        'float32'
    """
    if not lookup(dtype).is_float:
        raise BufferMismatch(f"expected a float dtype for a step of a server optimizer, got {dtype}")
    return "float64" if dtype == "float64" else "float32"


def step(
    mean: Total | Operand,
    base: Operand,
    state: Sequence[Operand],
    out: Operand,
    new_state: Sequence[Operand],
    optimizer: Optimizer,
    dtype: str,
    *,
    mean_of: str,
    threads: int | None = None,
) -> None:
    """Write the model that follows `base`, and the optimizer's new state, in one pass.

    The mean of a total is not rounded before the step, unlike one that `finish` wrote. An exact total's is rounded to
    float64 once.

    Args:
        mean: A total with a sum of weights above 0, or buffers of float32 or float64 with the elements of `out`.
        base: The old model. Buffers lie over a total as operands do.
        state: The old state: as many operands as `optimizer.slots`, of `state_dtype(dtype)`, with the sizes of `out`.
        out: Writable buffers of `dtype`. They may be those of `base`.
        new_state: Writable buffers, as `state`. They may be those of `state`.
        optimizer: The formula and its numbers.
        dtype: The dtype of `base` and `out`: float64, float32, float16 or bfloat16.
        mean_of: `models`: the change is mean − base. `differences`: the change is the mean.
        threads: Threads at most. Default: `FLCORE_THREADS`, or else the cores that this process may use.

    Raises:
        Overflow: A result is beyond the range of its dtype, or an intermediate one is beyond that of float64. The
            content of `out` and `new_state` is undefined. So pass new arrays where the old state must survive.
        NotFinite: The mean or the base has a NaN or an infinity. Results are undefined, as above.
        BadState: The state has a NaN or an infinity, or its v is negative. Results are undefined, as above.
        BufferMismatch: An array has another size, dtype or place than expected, or shares memory with a result.
        UnknownDType: There is no such dtype.
        WeightRange: The total's sum of weights is 0.
        SpoiledTotal: An earlier error spoiled the total.

    Example:
        >>> import numpy as np
        >>> from flcore_kernels import Momentum, step
        >>> mean, base, m = (np.array([value], np.float32) for value in (3, 1, 0.5))
        >>> step(mean, base, [m], base, [m], Momentum(lr=1.0, beta=0.5), "float32", mean_of="models")
        >>> base.tolist(), m.tolist()
        ([3.25], [2.25])
    """
    from flcore_kernels.cpu.step import BLOCKS_BYTES, RESULTS, ExactMeans, step_kernel

    if mean_of not in KEPT_BASE:
        raise BufferMismatch(f"mean_of is one of {', '.join(KEPT_BASE)}, not {mean_of!r}")
    held, sizes = state_dtype(dtype), sizes_of(out)
    for what, arrays in (("state", state), ("new_state", new_state)):
        if len(arrays) != optimizer.slots:
            raise BufferMismatch(f"{what}: expected {optimizer.slots} operands for {optimizer}, got {len(arrays)}")
    source, exact_total = _mean(mean, sizes), mean if isinstance(mean, Total) and mean.accumulate == "exact" else None
    olds = [
        _Place.of(base, dtype, sizes, "base"),
        *(_Place.of(each, held, sizes, f"state {slot}") for slot, each in enumerate(state)),
    ]
    news = [
        _Place.of(out, dtype, sizes, "out"),
        *(_Place.of(each, held, sizes, f"new_state {slot}") for slot, each in enumerate(new_state)),
    ]
    for each in (out, *new_state):
        require_writable(each)
    _require_apart(olds, news, source)

    rows = Rows.cut(sizes, ROW_ELEMENTS if exact_total is None else EXACT_ROW_ELEMENTS)
    exact = None if exact_total is None else ExactMeans.of(exact_total, rows)
    means = source.starts_of(rows) if exact is None else exact.places
    divisor = divisor_of(mean)[0] if isinstance(mean, Total) else 1.0
    numbers = np.array([divisor if exact is None else 1.0, KEPT_BASE[mean_of], *optimizer.numbers])
    kernel = step_kernel(optimizer.formula, source.dtype, dtype)
    tables = (_table(olds, rows), _table(news, rows), rows.counts, rows.starts)
    in_place = np.array([new.is_at(old) for old, new in zip(olds, news, strict=True)], np.int64)

    def work(batch: int) -> int:
        span = int(rows.batches[batch]), int(rows.batches[batch + 1])
        results = scratch(BLOCKS_BYTES + (exact.nbytes if exact else 0))
        room = results + np.uint64(BLOCKS_BYTES) if exact else np.uint64(0)
        if exact:
            exact.write(batch, room)
        return int(kernel(means, room, *tables, *span, numbers, in_place, results))

    found = shared_pool(threads).run(work, rows.batches.size - 1)
    bad = min((code for code in found if code >= 0), default=-1)
    if bad >= 0:
        raise _cause(mean, base, state, dtype, rows, *divmod(bad, RESULTS))


@dataclass(frozen=True)
class _Place:
    """Where the buffers of an operand begin, and how many elements of a dtype they have.

    A total has one buffer, over which rows lie at their place in the total.
    """

    dtype: str
    addresses: list[int]
    sizes: Sequence[int]
    is_total: bool = False

    @classmethod
    def of(cls, operand: Operand, dtype: str, sizes: Sequence[int], what: str) -> "_Place":
        """Return the place of an operand, or raise `BufferMismatch`."""
        return cls(dtype, addresses_of(operand, lookup(dtype), sizes, what)[0], sizes)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return lookup(self.dtype).dtype.itemsize

    def is_at(self, other: "_Place") -> bool:
        """Whether both are the same memory."""
        return self.addresses == other.addresses

    def starts_of(self, rows: Rows) -> Addresses:
        """Return the address of each row."""
        if self.is_total:
            return np.uint64(self.addresses[0]) + (rows.starts * self.itemsize).astype(np.uint64)
        return rows.table([self.addresses], self.itemsize)[:, 0]

    def spans(self) -> Numbers:
        """Return the first address of each buffer, and the one behind it."""
        starts = np.array(self.addresses, np.int64)
        return np.stack([starts, starts + np.array(self.sizes, np.int64) * self.itemsize], axis=1)


def _mean(mean: Total | Operand, sizes: Sequence[int]) -> _Place:
    """Return the place of the means, or raise `BufferMismatch` or `SpoiledTotal`."""
    if not isinstance(mean, Total):
        return _Place.of(mean, _dtype_of(mean), sizes, "mean")
    mean.require_usable()
    require_within(sizes, mean)
    taken = "float32" if mean.accumulate == "float32" else "float64"
    return _Place(taken, [address_of(mean.values)], [mean.values.size], is_total=True)


def _table(places: Sequence[_Place], rows: Rows) -> Addresses:
    """Return the addresses of rows, with a column for the model and for each array that a state may have."""
    table = np.zeros((rows.starts.size, SLOTS + 1), np.uint64)
    for column, place in enumerate(places):
        table[:, column] = place.starts_of(rows)
    return table


def _dtype_of(mean: Operand) -> str:
    """Return the dtype of means in buffers, which is float64 unless the first one has float32."""
    first = next(iter(buffers_of(mean)), None)
    return "float32" if getattr(first, "dtype", None) == np.float32 else "float64"


def _require_apart(olds: Sequence[_Place], news: Sequence[_Place], source: _Place) -> None:
    """Raise `BufferMismatch` if a result shares memory with an array, other than the one that it replaces in place."""
    written = [new.spans() for new in news]
    kept = [old.spans()[(old.spans() != new).any(axis=1)] for old, new in zip(olds, written, strict=True)]
    spans = np.concatenate([source.spans(), *kept, *written])
    is_result = np.arange(len(spans)) >= len(spans) - sum(map(len, written))
    is_result, spans = is_result[spans[:, 1] > spans[:, 0]], spans[spans[:, 1] > spans[:, 0]]
    order = np.argsort(spans[:, 0], kind="stable")
    (starts, ends), is_result = spans[order].T, is_result[order]
    reached = np.maximum.accumulate(np.where(is_result, ends, 0))  # by results only
    touched = np.maximum.accumulate(ends)
    if (starts[1:] < np.where(is_result[1:], touched[:-1], reached[:-1])).any():
        raise BufferMismatch(
            "out and new_state: expected memory of their own, or exactly that of base and of the same operand of "
            "state; they share memory with another array, or with another place of these"
        )


def _cause(
    mean: Total | Operand, base: Operand, state: Sequence[Operand], dtype: str, rows: Rows, element: int, result: int
) -> KernelError:
    """Return the error of a step in which a result of an element did not fit: its inputs, or else the result."""
    row = int(np.searchsorted(rows.starts, element, side="right")) - 1
    run, along = int(rows.runs[row]), int(rows.along[row]) + element - int(rows.starts[row])

    def value(operand: Operand, kind: str) -> float:
        return float(values_of(buffers_of(operand)[run], lookup(kind), kind, along, along + 1)[0])

    inputs = [] if isinstance(mean, Total) else [("mean", value(mean, _dtype_of(mean)))]
    inputs.append(("base", value(base, dtype)))
    for number, (name, read) in enumerate(inputs):
        if not np.isfinite(read):
            return NotFinite(number, element, read, name)
    for number, each in enumerate(state):
        read = value(each, state_dtype(dtype))
        if not np.isfinite(read) or (number == 1 and read < 0):
            wanted = "a finite number >= 0" if number else "a finite number"
            return BadState(f"state {number}: element {element} is {read}, expected {wanted}; begin with a new state")
    where = dtype if result == 0 else f"the optimizer's state ({state_dtype(dtype)})"
    name = "the model" if result == 0 else f"new_state {result - 1}"
    return Overflow(f"element {element} of {name} does not fit into {where}; lower lr", element, where=where)
