"""What `flcore bench robust` found: a table, goals, JSON and CSV."""

import csv
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flcore_bench.attacks import ATTACKS
from flcore_bench.machine import Machine
from flcore_bench.report import Goal
from flcore_bench.robust import NONE, Cell, RobustSettings

WIDTH = 100
"""The most columns of the table in a terminal."""

CHOICES = ("clipped_mean(", "multi_krum(", "nnm(")
"""How the names of the rules with goals begin: those that the docs recommend."""

GOAL, GOAL_LABEL_FLIP = 5.0, 8.0
"""Points of accuracy that these rules may lose against the mean without an attack."""


@dataclass(frozen=True)
class RobustReport:
    """One run of `flcore bench robust`."""

    command: str
    date: str
    seconds: float
    machine: Machine
    settings: RobustSettings
    cells: Sequence[Cell]

    def accuracy(self, rule: str, attack: str) -> float:
        """Return the accuracy of a cell, in percent."""
        (found,) = [cell for cell in self.cells if (cell.rule, cell.attack) == (rule, attack)]
        return 100 * found.accuracy

    @property
    def goals(self) -> list[Goal]:
        """How many points each rule that has goals loses under each attack. None without the mean."""
        if "mean" not in self.settings.all_rules:
            return []
        free = self.accuracy("mean", NONE)
        return [
            Goal(
                f"{rule} under {attack}",
                free - self.accuracy(rule, attack),
                GOAL_LABEL_FLIP if attack == "label_flip" else GOAL,
                is_at_least=False,
                unit=" points",
            )
            for rule in self.settings.all_rules
            if rule.startswith(CHOICES)
            for attack in self.settings.attacks
        ]

    def rows(self) -> list[tuple[str, list[float]]]:
        """Return each rule with its accuracies in percent, first without an attack."""
        columns = (NONE, *self.settings.attacks)
        return [(rule, [self.accuracy(rule, attack) for attack in columns]) for rule in self.settings.all_rules]

    @property
    def headings(self) -> list[str]:
        """The short names of the columns."""
        return [NONE, *(ATTACKS[name].heading for name in self.settings.attacks)]

    def text(self) -> str:
        """Return the report for a terminal of 100 columns."""
        chosen = self.settings
        lines = [f"{self.command}, {self.date}, {self.seconds:.0f} s", "", f"{self.machine.line}.", ""]
        claim = f" and claim {chosen.claim:g} times their weights" if chosen.claim != 1 else ""
        attackers = f"{chosen.attackers} of {chosen.clients} clients attack{claim}"
        lines += [
            f"Accuracy in percent after {chosen.rounds} rounds.",
            f"{attackers}, alpha {chosen.alpha:g}, seed {chosen.seed}.",
            *textwrap.wrap(", ".join(f"{ATTACKS[name].heading}: {name}" for name in chosen.attacks), WIDTH),
            "",
        ]
        numbers = 6 * len(self.headings)
        names = min(WIDTH - numbers, max(len("rule"), *map(len, chosen.all_rules)))
        lines.append("rule".ljust(names) + "".join(f"{heading:>6}" for heading in self.headings))
        for rule, accuracies in self.rows():
            cells = "".join(f"{accuracy:6.1f}" for accuracy in accuracies)
            # A long name has a line of its own.
            lines += [f"{rule:{names}}{cells}"] if len(rule) <= names else [rule, " " * names + cells]
        missed = [goal for goal in self.goals if not goal.is_met]
        if self.goals:
            lines += ["", f"{len(self.goals) - len(missed)} of {len(self.goals)} goals met."]
            lines += [f"- {goal}" for goal in missed]
        return "\n".join(lines)

    def write_json(self, path: Path) -> None:
        """Write everything as JSON."""
        goals = [asdict(goal) | {"is_met": goal.is_met} for goal in self.goals]
        content: dict[str, Any] = asdict(self) | {"goals": goals}
        content["settings"]["rules"] = list(self.settings.all_rules)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def write_csv(self, path: Path) -> None:
        """Write a line for each cell: rule, attack, accuracy (0 to 1) and the round in which the model was lost."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["rule", "attack", "accuracy", "lost_in"])
            writer.writerows([cell.rule, cell.attack, f"{cell.accuracy:.6f}", cell.lost_in] for cell in self.cells)
