"""When updates are folded: one plan per row of `PLANS`. Exact sums give both the same bits.

`AtClose` holds all updates until the end; then every chunk of all of them is combined in one pass, in the order
of the clients' names, with a total that never leaves the cache. `Streaming` folds an update when it is committed, on a
thread of its own, into a total of 4, 8 or 16 bytes per parameter, and lets it go: memory does not grow with the number
of clients, and when the last update is in, only its own fold remains.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from flcore_kernels import Backend, Total
from flcore_transport import piece_elements

from flcore.aggregation.gather import blamed
from flcore.aggregation.rules import Rule
from flcore.aggregation.staging import StagedUpdate
from flcore.aggregation.weights import accumulator_of, require_sum
from flcore.errors import QuorumError
from flcore.model.model import Model
from flcore.model.spec import ModelSpec

GROUP = 8
"""How many updates are folded at once where they come in faster: the total is then read once for all of them."""


@dataclass(frozen=True)
class Recipe:
    """How updates become a model: whatever the plan."""

    spec: ModelSpec
    rule: Rule
    accumulate: str
    base: Model | None
    backend: Backend

    def coefficients(self, updates: list[StagedUpdate]) -> list[float]:
        """Return what each update enters the sum with."""
        return [self.rule.coefficient(update.weight) for update in updates]


class Plan(Protocol):
    """Takes committed updates, each client's once, and makes a model of them; its aggregator calls it one at a time."""

    def add(self, update: StagedUpdate) -> None:
        """Take an update, and with it what it holds."""
        ...

    def finish(self) -> Model:
        """Return the result and begin anew (see `Aggregator.finish`)."""
        ...


class AtClose:
    """Folds everything at the end, chunk by chunk, straight into the result."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._updates: list[StagedUpdate] = []

    def add(self, update: StagedUpdate) -> None:
        """Keep an update until the end."""
        self._updates.append(update)

    def finish(self) -> Model:
        """Combine all updates, in the order of their clients' names."""
        updates, self._updates = sorted(self._updates, key=lambda update: update.client), []
        recipe = self._recipe
        coefficients, clients = recipe.coefficients(updates), [update.client for update in updates]
        _require_some(coefficients)
        result = Model(recipe.spec)
        for index, segment in enumerate(recipe.spec.segments):
            size, accumulate = piece_elements(segment.dtype), accumulator_of(segment.dtype, recipe.accumulate)
            for first in range(0, segment.elements, size):
                parts = [update.take_chunk(index, first // size) for update in updates]
                stop = first + parts[0].size
                base = None if recipe.base is None else recipe.base.segments[index][first:stop]
                out = result.segments[index][first:stop]
                with blamed(segment, clients, first):
                    recipe.backend.mean(parts, coefficients, out, segment.dtype, accumulate, base=base)
        return result


class Streaming:
    """Folds updates as they are committed, in the order in which they come, on a thread of its own."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flcore-fold")
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[StagedUpdate] = []
        self._folds: list[Future[None]] = []
        self._coefficients: list[float] = []
        self._totals: list[Total] = []

    def add(self, update: StagedUpdate) -> None:
        """Have an update folded; whoever commits it does not wait for that."""
        with self._lock:
            self._waiting.append(update)
        self._folds.append(self._thread.submit(self._fold_waiting))

    def finish(self) -> Model:
        """Wait for the last fold, and divide."""
        wait(self._folds)  # all of them, whichever fails: none may reach into the next round
        try:
            for fold in self._folds:
                fold.result()
            _require_some(self._coefficients)
            result = Model(self._recipe.spec)
            base = self._recipe.base
            for index, (segment, total) in enumerate(zip(self._recipe.spec.segments, self._totals, strict=True)):
                with blamed(segment, []):
                    self._recipe.backend.finish(
                        total,
                        result.segments[index],
                        segment.dtype,
                        base=None if base is None else base.segments[index],
                    )
            return result
        finally:
            self._begin()

    def _fold_waiting(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
        if not group:  # an earlier call took it with its own
            return
        recipe = self._recipe
        if not self._totals:
            self._totals = [
                recipe.backend.total(segment.elements, accumulator_of(segment.dtype, recipe.accumulate))
                for segment in recipe.spec.segments
            ]
        coefficients = recipe.coefficients(group)
        for index, (segment, total) in enumerate(zip(recipe.spec.segments, self._totals, strict=True)):
            with blamed(segment, [update.client for update in group]):
                recipe.backend.fold(
                    total, [update.take_segment(index) for update in group], coefficients, segment.dtype
                )
        self._coefficients += coefficients


def _require_some(coefficients: list[float]) -> None:
    if not coefficients:
        raise QuorumError("there is nothing to aggregate: no update was committed")
    require_sum(coefficients)


PLANS: dict[str, Callable[[Recipe], Plan]] = {"at-close": AtClose, "streaming": Streaming}
"""Every plan, by the name that the command line gives it."""
