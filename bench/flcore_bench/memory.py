"""`flcore bench memory`: the peak memory of a fresh server process, held to the bound that flcore states for it."""

from itertools import product

from flcore_bench.case import Case, rows_of
from flcore_bench.goals import within_memory_bound
from flcore_bench.report import Row

MB = 10**6

CLIENTS = {"few clients": (4, 4), "many clients": (64, 400)}
SIZES = {"few clients": (16 * MB, 512 * MB), "many clients": (4 * MB, 16 * MB)}
SHAPES = {"one tensor": "flat", "ten thousand tensors": "many"}
PLANS = {
    "streaming, float32": ("streaming", "float32"),
    "streaming, exact": ("streaming", "exact"),
    "batch": ("batch", "exact"),
}

MEMORY_CASES = [
    Case(
        f"{plan}, {shape}, {clients}",
        SIZES[clients],
        shape=SHAPES[shape],
        clients=CLIENTS[clients],
        rounds=(2, 2),
        plan=PLANS[plan][0],
        accumulate=PLANS[plan][1],
        on_disk=PLANS[plan][0] == "batch",
        goals=[within_memory_bound()],
    )
    for clients, shape, plan in product(CLIENTS, SHAPES, PLANS)
]

STALLED = {"server": {"close_at": 1}, "tasks": {"train": {"hyperparameters": {"stalls": True, "pause_s": 4.0}}}}
"""All clients but one stop halfway through their uploads. The other one answers after 4 s."""

MEMORY_CASES += [
    Case(
        f"{plan}, uploads that stall halfway",
        (30 * MB, 64 * MB),
        clients=(6, 101),
        rounds=(1, 1),
        plan=PLANS[plan][0],
        accumulate=PLANS[plan][1],
        on_disk=True,
        contract=STALLED,
        goals=[within_memory_bound()],
    )
    for plan in ("streaming, exact", "batch")
]


def memory_rows(scale: str, threads: int) -> list[Row]:
    """Measure every combination, each in a server process of its own."""
    return rows_of(MEMORY_CASES, scale, threads)
