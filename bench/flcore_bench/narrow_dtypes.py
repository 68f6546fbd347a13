"""Means of narrower wire dtypes, by the kernel itself: half the bytes should take little more than half the time."""

from functools import partial

from flcore_kernels import Part, backend

from flcore_bench.clients import CLIENTS, buffers, encoded, make_clients, make_weights, touched
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.numpy_baselines import upcast_and_add
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import Work, interleaved

GOALS = {"bfloat16": (1.6, 12.0), "float16": (1.6, 12.0), "int8[256]": (2.2, 15.0)}
"""How many times as fast per parameter as our own float32, and as NumPy."""


def narrow_dtype_rows(setup: Setup) -> list[Row]:
    """Measure each narrow dtype in turn with float32, its NumPy baseline and its limit."""
    models, weights = make_clients(CLIENTS, setup.elements), make_weights(CLIENTS)
    rows: list[Row] = []
    for dtype in GOALS:
        rows += _dtype_rows(setup, dtype, list(models), encoded(models, dtype), weights)
    return rows


def _dtype_rows(setup: Setup, dtype: str, models: list[Part], parts: list[Part], weights: list[float]) -> list[Row]:
    cpu = backend("cpu", threads=setup.threads)
    result = "float32" if dtype.startswith("int8[") else dtype
    target = touched(setup.elements, "float32" if result == "float32" else "uint16")
    wide = touched(setup.elements)
    cases: dict[str, Work] = {
        "own": lambda: cpu.mean(parts, weights, target, dtype, "float32"),
        "float32": lambda: cpu.mean(models, weights, wide, "float32", "float32"),
        "numpy": partial(upcast_and_add, parts, weights, dtype),
    }
    # The limit of a dtype writes into an array of its own size, after which the kernel's result is not looked at.
    cases |= limit_cases(buffers(parts), target, setup.threads)
    taken = interleaved(cases, setup.rounds)
    size = sum(array.nbytes for array in buffers(parts))
    limit = measured_limit(taken)
    per_parameter, over_numpy = ratio(taken["float32"], taken["own"]), ratio(taken["numpy"], taken["own"])
    wanted = GOALS[dtype]
    shape = f"{CLIENTS} x {count_of(setup.elements)}"
    return [
        Row(
            f"kernel mean, {dtype}, float32 sums, {shape}",
            taken["own"],
            size,
            limit,
            {"our f32": per_parameter, "NumPy upcast and add": over_numpy},
            [Goal("our f32", per_parameter, wanted[0]), Goal("NumPy", over_numpy, wanted[1])],
            series=f"flcore {dtype}, float32 sums",
        ),
        Row(f"kernel mean, float32 beside it, {shape}", taken["float32"], 4 * CLIENTS * setup.elements),
        Row(f"NumPy, upcast and add, {dtype}, {shape}", taken["numpy"], size, limit),
        Row(f"{limit.loop}, {dtype}", limit.seconds, size, limit),
    ]
