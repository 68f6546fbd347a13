"""`flcore bench rules`: order statistics, distances and robust rules, beside the mean of the same clients and NumPy.

Measured in one fresh process, with every side interleaved. `flcore bench robust` measures what rules achieve under
attack; this one measures what they cost.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import Operand, SquaredDistances, backend, mean_around_median, median, mix, trimmed_mean

import flcore
from flcore_bench.limit import limit_cases, measured_limit
from flcore_bench.process import run_in_process
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.sections import Sections, print_sections
from flcore_bench.timing import Work, interleaved
from flcore_bench.workload import (
    CLIENTS,
    Sizes,
    buffers,
    encode_models,
    format_count,
    make_clients,
    make_weights,
    prefaulted,
)

Array = npt.NDArray[Any]

ORDER_CLIENTS = (3, 10, 16, 32)
MANY_CLIENTS = (64, 128, 1000)
PART = 64
"""NumPy is measured on one element of so many, and its time multiplied: it would take minutes."""


def rule_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a new process (see `benchmark_environment`)."""
    return [Row.from_json(row) for row in run_in_process("flcore_bench.rules", scale, threads=threads)]


def order_rows(sizes: Sizes) -> list[Row]:
    """Measure order statistics of few clients, beside the float32 mean and `np.median`."""
    rows: list[Row] = []
    for clients in ORDER_CLIENTS:
        elements = sizes.elements * CLIENTS // clients // 2
        models, weights, out = make_clients(clients, elements), make_weights(clients), prefaulted(elements)
        trim, threads = max(1, clients // 5), sizes.threads
        stacked = np.stack([model[: elements // PART] for model in models])
        cases: dict[str, Work] = {
            "mean": partial(backend("cpu", threads=threads).mean, models, weights, out, "float32", "float32"),
            "median": partial(median, models, out, "float32", threads=threads),
            "trimmed": partial(trimmed_mean, models, out, "float32", trim=trim, threads=threads),
            "meamed": partial(mean_around_median, models, out, "float32", keep=clients - trim, threads=threads),
            "weighted median": partial(median, models, out, "float32", weights=weights, threads=threads),
            "weighted trimmed": partial(
                trimmed_mean, models, out, "float32", trim=trim, weights=weights, threads=threads
            ),
            "np.median": partial(np.median, stacked, axis=0),
        }
        taken = interleaved(cases | limit_cases(models, out, threads), sizes.rounds)
        taken["np.median"] = [seconds * PART for seconds in taken["np.median"]]
        limit, size = measured_limit(taken), sum(model.nbytes for model in models)
        shape = f"{clients} x {format_count(elements)} f32"
        most = {"median": 1.5, "trimmed": 1.5, "weighted median": 4.0}
        rows.append(Row(f"float32 mean, {shape}", taken["mean"], size, limit))
        for name in ("median", "trimmed", "meamed", "weighted median", "weighted trimmed"):
            times = ratio(taken[name], taken["mean"])
            goals = [Goal("over the mean", times, most[name], is_at_least=False)] if name in most else []
            over_numpy = ratio(taken["np.median"], taken[name])
            goals += [Goal("np.median", over_numpy, 50.0)] if name == "median" else []
            rows.append(Row(f"{name}, {shape}", taken[name], size, limit, {"np.median": over_numpy}, goals))
    return rows


def narrow_rows(sizes: Sizes) -> list[Row]:
    """Measure medians of 16-bit floats, beside that of float32."""
    elements, threads = sizes.elements, sizes.threads
    models = make_clients(CLIENTS, elements)
    rows: list[Row] = []
    for dtype in ("bfloat16", "float16"):
        parts = encode_models(models, dtype)
        narrow, wide = prefaulted(elements, "uint16"), prefaulted(elements)
        cases: dict[str, Work] = {
            "own": partial(median, _arrays(parts), narrow, dtype, threads=threads),
            "float32": partial(median, models, wide, "float32", threads=threads),
        }
        taken = interleaved(cases | limit_cases(buffers(parts), narrow, threads), sizes.rounds)
        limit, size = measured_limit(taken), sum(array.nbytes for array in buffers(parts))
        faster = ratio(taken["float32"], taken["own"])
        shape = f"{CLIENTS} x {format_count(elements)}"
        rows.append(
            Row(f"median, {dtype}, {shape}", taken["own"], size, limit, {"our f32": faster}, [Goal("f32", faster, 1.5)])
        )
        rows.append(Row(f"median, float32 beside it, {shape}", taken["float32"], 4 * CLIENTS * elements))
    return rows


def many_rows(sizes: Sizes) -> list[Row]:
    """Measure medians of many clients, beside `np.partition`."""
    rows: list[Row] = []
    for clients in MANY_CLIENTS:
        elements = max(1 << 12, sizes.elements // clients // 4)
        models, out = make_clients(clients, elements), prefaulted(elements)
        part = max(64, elements // PART)
        stacked = np.stack([model[:part] for model in models])
        middle = sorted({(clients - 1) // 2, clients // 2})
        taken = interleaved(
            {
                "own": partial(median, models, out, "float32", threads=sizes.threads),
                "partition": partial(np.partition, stacked, middle, axis=0),
                "mean": partial(
                    backend("cpu", threads=sizes.threads).mean, models, make_weights(clients), out, "float32", "float32"
                ),
            },
            sizes.rounds,
        )
        taken["partition"] = [seconds * elements / part for seconds in taken["partition"]]
        faster = ratio(taken["partition"], taken["own"])
        against = {"np.partition": faster, "float32 mean": ratio(taken["mean"], taken["own"])}
        what = f"median, {clients} x {format_count(elements)} f32"
        rows.append(
            Row(what, taken["own"], 4 * clients * elements, None, against, [Goal("np.partition", faster, 10.0)])
        )
    return rows


def distance_rows(sizes: Sizes) -> list[Row]:
    """Measure distances, norms and combinations, beside BLAS on a matrix stacked beforehand."""
    rows: list[Row] = []
    for clients in (CLIENTS, 32):
        elements = sizes.elements * CLIENTS // clients // 4
        models, out = make_clients(clients, elements), prefaulted(elements)
        matrix, points = np.stack(models), [prefaulted(elements) for _ in models]
        shares = np.full((clients, clients), 1 / clients)
        cases: dict[str, Work] = {
            "distances": partial(_distances, models, sizes.threads, pairs=True),
            "norms": partial(_distances, models, sizes.threads, pairs=False),
            "mix": partial(mix, models, shares, points, "float32", threads=sizes.threads),
            "mean": partial(
                backend("cpu", threads=sizes.threads).mean, models, make_weights(clients), out, "float32", "float32"
            ),
            "sgemm": partial(np.matmul, matrix, matrix.T),
        }
        taken = interleaved(cases | limit_cases(models, out, sizes.threads), sizes.rounds)
        limit, size = measured_limit(taken), sum(model.nbytes for model in models)
        shape = f"{clients} x {format_count(elements)} f32"
        for name, what in (
            ("distances", "squared distances of all pairs and the base"),
            ("norms", "norms"),
            ("mix", f"mix, {clients} combinations"),
            ("mean", "float32 mean"),
            ("sgemm", "BLAS sgemm, stacked beforehand"),
        ):
            against = {"float32 mean": ratio(taken["mean"], taken[name])}
            against |= {"BLAS sgemm": ratio(taken["sgemm"], taken[name])} if name == "distances" else {}
            rows.append(Row(f"{what}, {shape}", taken[name], size, limit, against))
    return rows


def whole_rule_rows(sizes: Sizes) -> list[Row]:
    """Measure `flcore.aggregate` with robust rules, in readings of the clients' bytes."""
    rows: list[Row] = []
    for clients, elements, most in ((CLIENTS, min(sizes.elements, 10_000_000), 2.5), (32, sizes.elements // 16, 8.0)):
        models, out = make_clients(clients, elements), prefaulted(elements)
        updates = [({"w": model}, weight) for model, weight in zip(models, make_weights(clients), strict=True)]
        f = clients // 5
        names = (
            f"krum(f={f})",
            f"multi_krum(f={f})",
            "geometric_median",
            f"nnm(f={f}) + trimmed_mean(f={f})",
            f"bulyan(f={(clients - 3) // 4})",
        )
        cases: dict[str, Work] = {
            name: partial(flcore.aggregate, updates, rule=name, accumulate="float32", out={"w": out})
            for name in ("mean", *names)
        }
        taken = interleaved(cases | limit_cases(models, out, sizes.threads), sizes.rounds)
        limit, size = measured_limit(taken), sum(model.nbytes for model in models)
        for name in ("mean", *names):
            readings = ratio(taken[name], limit.seconds)
            goals = [Goal("readings", readings, most, is_at_least=False)] if name in names[:3] else []
            shape = f"{clients} x {format_count(elements)} f32"
            against = {"mean": ratio(taken["mean"], taken[name])}
            rows.append(Row(f"aggregate, {name}, {shape}", taken[name], size, limit, against, goals))
    return rows


SECTIONS: Sections = {
    "order statistics": order_rows,
    "16-bit floats": narrow_rows,
    "many clients": many_rows,
    "distances and combinations": distance_rows,
    "whole rules": whole_rule_rows,
}


def _arrays(parts: Sequence[Operand]) -> list[Array]:
    return [np.asarray(part) for part in parts]


def _distances(models: Sequence[Array], threads: int, *, pairs: bool) -> npt.NDArray[np.float64]:
    distances = SquaredDistances(len(models), pairs=pairs, threads=threads)
    distances.add(models, "float32")
    return distances.matrix()


def main() -> None:
    """In that process: measure each section, and print the rows as JSON."""
    print_sections(SECTIONS)
