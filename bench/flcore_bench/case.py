"""A federation to measure at two scales, with what is wanted of it; and the line of a table that comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from flcore_bench.federated import Federated, Figures, measured
from flcore_bench.progress import measuring
from flcore_bench.rates import Rates, check_rate, measured_rates
from flcore_bench.row import Goal, Row

SCALES = ("small", "full")
Pair = tuple[int, int]
"""A number at scale small, and at scale full."""


@dataclass(frozen=True)
class Measured:
    """One federation, what it took, and what the machine does by itself: `rates` only where they were asked for."""

    run: Federated
    figures: Figures
    check_rate: float
    rates: Rates | None = None

    @property
    def seconds(self) -> float:
        """The median round's."""
        return median(self.figures.seconds)


Book = Mapping[str, Measured]
"""What was measured before, by the names of the cases."""

Wanted = Callable[[Measured, Book], Goal]


@dataclass(frozen=True)
class Case:
    """What is measured under a name (see `Federated`), for goals that are those of scale full.

    With `is_rated`, the machine's rates are measured beside it.
    """

    name: str
    sizes: Pair
    shape: str = "flat"
    clients: Pair = (4, 4)
    rounds: Pair = (3, 6)
    accumulate: str = "exact"
    plan: str = "at-close"
    budgets: Pair = (64 << 20, 1 << 30)
    on_disk: bool = False
    is_rated: bool = False
    contract: Mapping[str, Any] = field(default_factory=dict)
    wanted: Sequence[Wanted] = ()
    note: str = ""

    def at(self, scale: str) -> Federated:
        """Return the federation at a scale."""
        place = SCALES.index(scale)
        return Federated(
            self.shape,
            self.sizes[place],
            clients=self.clients[place],
            rounds=self.rounds[place],
            accumulate=self.accumulate,
            options={"plan": self.plan, "budget_bytes": self.budgets[place]},
            on_disk=self.on_disk,
            contract=self.contract,
        )


def rows_of(cases: Sequence[Case], scale: str, threads: int) -> list[Row]:
    """Measure cases one after the other, and return their rows."""
    book: dict[str, Measured] = {}
    rows: list[Row] = []
    checks = check_rate()
    for case in cases:
        measuring(case.name)
        run = case.at(scale)
        rates = measured_rates(run, threads) if case.is_rated else None
        found = book[case.name] = Measured(run, measured(run, threads), checks, rates)
        row = _row(case, found)
        row.goals.extend(wanted(found, book) for wanted in case.wanted)
        rows.append(row)
        if rates is not None:
            floor_s = rates.floor_s(run)
            row.against["moving, writing, reading back, writing the result"] = floor_s / row.median_s
            rows.append(Row(f"the same at the rates of this run: {row.what}", [floor_s], note=str(rates)))
    return rows


def _row(case: Case, found: Measured) -> Row:
    run, figures = found.run, found.figures
    phases = ", ".join(
        f"{phase} {median(seconds) * 1e3:,.0f} ms" for phase, seconds in figures.phases.items() if phase != "round"
    )
    notes = [case.note, f"peak {figures.peak_bytes / 1e6:,.0f} MB", phases]
    if run.on_disk:
        notes.append(f"disk {figures.disk_bytes / 1e6:,.0f} MB")
    if figures.losses:
        reasons = figures.failed | figures.refused
        notes.append(f"{figures.losses} failed or refused: {'; '.join(reasons)[:200]}")
    size = f"{run.model_bytes / 1e6:,.0f} MB" if run.model_bytes >= 1e6 else f"{run.model_bytes / 1e3:,.0f} KB"
    return Row(
        f"{case.name}, {size} x {run.clients} clients",
        figures.seconds,
        figures.bytes_per_round,
        note="; ".join(filter(None, notes)),
    )
