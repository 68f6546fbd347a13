"""`flcore bench robust`: how well each aggregation rule learns the digits while some clients attack.

A cell of the table is a whole training: the accuracy of the model after the last round, for a rule and an attack. All
cells have the same clients, first model and batches.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import flcore
from flcore_bench.attacks import ATTACKS, Attack, Seen
from flcore_bench.digit_clients import DigitClients, Floats
from flcore_bench.internals import min_updates, resolve_rule

NONE = "none"
"""The column in which nobody attacks."""

RULES = (
    "mean",
    "clipped_mean(quantile=0.5)",
    "median",
    "trimmed_mean(f={f})",
    "krum(f={f})",
    "multi_krum(f={f})",
    "geometric_median",
    "nnm(f={f}) + trimmed_mean(f={f})",
    "nnm(f={f}) + geometric_median",
    "bulyan(f={f})",
    "arc(f={f}) + nnm(f={f}) + trimmed_mean(f={f})",
)
"""The rules of the table, for f attackers."""

RATES, LATE = (0.5, 0.125), 0.7
"""The learning rates before and after this share of the rounds, much as in the bundled job `digits`."""

LARGEST = 1e30
"""A model with a larger element is lost: products overflow. The bound of a job's contract is the same by default."""


@dataclass(frozen=True)
class RobustSettings:
    """The settings of a run.

    Attributes:
        rounds: Rounds of each training.
        clients: The number of clients.
        attackers: How many of them attack.
        alpha: How much their digits differ: the concentration of `flcore.partition.dirichlet_balanced`.
        seed: The seed of all that is drawn.
        claim: How many times their weights the attackers claim.
        rules: The rules, in the order of the table. None: those of `RULES`.
        attacks: The attacks, in the order of the table.

    Raises:
        flcore.JobError: A value is outside its bounds, or a rule needs more clients.
    """

    rounds: int = 50
    clients: int = 15
    attackers: int = 3
    alpha: float = 10.0
    seed: int = 1
    claim: float = 1.0
    rules: tuple[str, ...] = ()
    attacks: tuple[str, ...] = tuple(ATTACKS)

    def __post_init__(self) -> None:
        if not 1 <= self.attackers < self.clients / 2:
            raise flcore.JobError(
                f"expected at least 1 attacker, and fewer than half of the {self.clients} clients, "
                f"got {self.attackers}; change --attackers or --clients"
            )
        for name in self.attacks:
            if name not in ATTACKS:
                raise flcore.JobError(f"attack {name!r} does not exist; expected one of {', '.join(ATTACKS)}")
        for rule in self.all_rules:
            if (needed := min_updates(resolve_rule(rule))) > self.clients:
                raise flcore.JobError(
                    f"rule {rule!r} needs {needed} updates or more, and there are {self.clients} clients; take fewer "
                    "--attackers, more --clients, or choose rules by --rule"
                )

    @property
    def all_rules(self) -> tuple[str, ...]:
        """The rules: the given ones, or those of `RULES`."""
        return self.rules or tuple(rule.format(f=self.attackers) for rule in RULES)


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        rule: The rule.
        attack: The attack, or "none".
        accuracy: The share of the test's scans that the last model reads right.
        lost_in: The round in which the model had grown beyond all bounds, so that training ended; 0 if it never did.
    """

    rule: str
    attack: str
    accuracy: float
    lost_in: int = 0


def cells(settings: RobustSettings) -> Iterator[Cell]:
    """Train once for each rule and attack, and tell on standard error how far it is."""
    clients = DigitClients.draw(settings.clients, settings.attackers, settings.alpha, settings.seed)
    columns = (NONE, *settings.attacks)
    began, rules = time.monotonic(), settings.all_rules
    for number, rule in enumerate(rules):
        passed = time.monotonic() - began
        left = f", about {passed / number * (len(rules) - number):.0f} s left" if number else ""
        print(f"training: {rule} ({number + 1} of {len(rules)}{left})", file=sys.stderr, flush=True)
        for column in columns:
            yield trained(clients, settings.rounds, rule, column, settings.claim)


def trained(clients: DigitClients, rounds: int, rule: str, attack: str, claim: float = 1.0) -> Cell:
    """Return what a federation with this rule has learned under an attack."""
    model, lost_in = clients.first_model(), 0
    batches, noise = (np.random.default_rng([clients.seed, stream]) for stream in (3, 4))
    chosen = ATTACKS.get(attack, Attack(NONE))
    labels = clients.poisoned_labels if chosen.flips_labels else clients.labels
    first: Floats | None = None
    for number in range(1, rounds + 1):
        with np.errstate(all="ignore"):  # a model under attack may overflow
            updates = clients.train(model, labels, RATES[number > LATE * rounds], batches)
        if not np.abs(updates).max() < LARGEST:  # NaN is not below it either
            lost_in = number
            break
        honest = np.delete(updates, clients.hostile, axis=0)
        first = honest if first is None else first
        own, weights = updates[clients.hostile], clients.weights
        sent, claimed = chosen.send(Seen(honest, first, own, weights[clients.hostile], noise))
        updates[clients.hostile], weights[clients.hostile] = sent, claimed * (claim if attack != NONE else 1.0)
        model = aggregated(model, updates, weights.tolist(), rule)
    with np.errstate(all="ignore"):
        return Cell(rule, attack, clients.accuracy(model), lost_in)


def aggregated(model: Floats, updates: Floats, weights: Sequence[float], rule: str) -> Floats:
    """Return the next model."""
    pairs = [({"model": update}, weight) for update, weight in zip(updates, weights, strict=True)]
    result: Floats = flcore.aggregate(pairs, rule=rule, base={"model": model})["model"]
    return result
