"""A case: a federation to measure at two scales with its goals, and the row of the report that it yields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from flcore_bench.federation import FederationSpec, Figures, run_federation
from flcore_bench.rates import Rates, measure_check_rate, measure_rates
from flcore_bench.report import Goal, Row
from flcore_bench.timing import report_progress

SCALES = ("small", "full")
Pair = tuple[int, int]
"""A number at scale small, and at scale full."""


@dataclass(frozen=True)
class CaseResult:
    """The result of one case.

    Attributes:
        run: The federation that was run.
        figures: The figures of the run.
        check_rate: Bytes per second that one thread checks on this machine.
        rates: The machine's network and disk rates; None unless the case is rated.
    """

    run: FederationSpec
    figures: Figures
    check_rate: float
    rates: Rates | None = None

    @property
    def seconds(self) -> float:
        """The duration of the median round."""
        return median(self.figures.seconds)


EarlierResults = Mapping[str, CaseResult]
"""The results of the cases so far, by case name. They include the current one."""

GoalRule = Callable[[CaseResult, EarlierResults], Goal]


@dataclass(frozen=True)
class Case:
    """A federation to measure (see `FederationSpec`), with a value per scale where it depends on the scale.

    `goals` apply at scale full. With `is_rated`, the machine's network and disk rates are measured in the same run.
    """

    name: str
    sizes: Pair
    shape: str = "flat"
    clients: Pair = (4, 4)
    rounds: Pair = (3, 6)
    accumulate: str = "exact"
    plan: str = "batch"
    budgets: Pair = (64 << 20, 1 << 30)
    on_disk: bool = False
    is_rated: bool = False
    contract: Mapping[str, Any] = field(default_factory=dict)
    goals: Sequence[GoalRule] = ()
    note: str = ""

    def at(self, scale: str) -> FederationSpec:
        """Return the federation at a scale."""
        index = SCALES.index(scale)
        return FederationSpec(
            self.shape,
            self.sizes[index],
            clients=self.clients[index],
            rounds=self.rounds[index],
            accumulate=self.accumulate,
            options={"plan": self.plan, "budget_bytes": self.budgets[index]},
            on_disk=self.on_disk,
            contract=self.contract,
        )


def rows_of(cases: Sequence[Case], scale: str, threads: int) -> list[Row]:
    """Measure cases one after the other, and return their rows."""
    results: dict[str, CaseResult] = {}
    rows: list[Row] = []
    check_rate = measure_check_rate()
    for case in cases:
        report_progress(case.name)
        run = case.at(scale)
        rates = measure_rates(run, threads) if case.is_rated else None
        result = results[case.name] = CaseResult(run, run_federation(run, threads), check_rate, rates)
        row = _row(case, result)
        row.goals.extend(rule(result, results) for rule in case.goals)
        rows.append(row)
        if rates is not None:
            floor_s = rates.floor_s(run)
            row.against["moving, writing, reading back, writing the result"] = floor_s / row.median_s
            rows.append(Row(f"the same at the rates of this run: {row.what}", [floor_s], note=str(rates)))
    return rows


def _row(case: Case, result: CaseResult) -> Row:
    run, figures = result.run, result.figures
    phases = ", ".join(
        f"{phase} {median(seconds) * 1e3:,.0f} ms" for phase, seconds in figures.phases.items() if phase != "round"
    )
    notes = [case.note, f"peak {figures.peak_bytes / 1e6:,.0f} MB", phases]
    if run.on_disk:
        notes.append(f"disk {figures.disk_bytes / 1e6:,.0f} MB")
    if figures.failure_count:
        reasons = figures.failed | figures.refused
        notes.append(f"{figures.failure_count} failed or refused: {'; '.join(reasons)[:200]}")
    size = f"{run.model_bytes / 1e6:,.0f} MB" if run.model_bytes >= 1e6 else f"{run.model_bytes / 1e3:,.0f} KB"
    return Row(
        f"{case.name}, {size} x {run.clients} clients",
        figures.seconds,
        figures.bytes_per_round,
        note="; ".join(filter(None, notes)),
    )
