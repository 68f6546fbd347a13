"""When updates are folded: one plan per row of `PLANS`. Exact sums give both the same bits.

`AtClose` keeps all updates until the end; then every chunk of all of them is combined in one pass, in the order of the
clients' names, with a total of one chunk. `Streaming` folds an update when it is committed, on a thread of its own,
into a total of 4, 8 or 16 bytes per parameter, and lets it go: when the last update is in, only its own fold remains.
Either reads what is on disk chunk by chunk, and the next one ahead.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from flcore_kernels import Backend, Total
from flcore_transport import PieceRange

from flcore.aggregation.ahead import ahead
from flcore.aggregation.gather import blamed
from flcore.aggregation.rules import Rule
from flcore.aggregation.update import StagedUpdate
from flcore.aggregation.weights import accumulator_of, require_sum
from flcore.errors import QuorumError
from flcore.model.chunks import GlobalModel, Target
from flcore.model.form import Form
from flcore.model.narrow import Part

GROUP = 8
"""How many updates are folded at once where they come in faster: the total is then read once for all of them."""

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Recipe:
    """How updates become a model, whatever the plan. `read_chunks` is how many chunks may be read from disk at once."""

    form: Form
    rule: Rule
    accumulate: str
    base: GlobalModel | None
    backend: Backend
    target: Callable[[], Target]
    read_chunks: int

    def coefficients(self, updates: Sequence[StagedUpdate]) -> list[float]:
        """Return what each update enters the sum with."""
        return [self.rule.coefficient(update.weight) for update in updates]

    def accumulator(self, piece: PieceRange) -> str:
        """Return what a chunk is summed in."""
        return accumulator_of(self.form.spec.segments[piece.segment].dtype, self.accumulate)

    def fold(self, total: Total, piece: PieceRange, updates: Sequence[StagedUpdate], parts: Sequence[Part]) -> None:
        """Add a chunk of some updates to its total."""
        segment = self.form.spec.segments[piece.segment]
        with blamed(segment, [update.client for update in updates], piece.first):
            self.backend.fold(total, parts, self.coefficients(updates), piece.dtype)

    def groups(self, updates: Sequence[StagedUpdate]) -> list[Sequence[StagedUpdate]]:
        """Cut updates into groups whose chunks may be in memory at once; those that are in memory anyway are free."""
        if sum(not update.is_in_memory for update in updates) <= self.read_chunks:
            return [updates]
        return [updates[first : first + self.read_chunks] for first in range(0, len(updates), self.read_chunks)]


class Plan(Protocol):
    """Takes committed updates, each client's once, and makes a model of them; its aggregator calls it one at a time."""

    lets_go: bool
    """Whether updates are let go as more come in, so that waiting for room in memory makes sense."""

    def add(self, update: StagedUpdate) -> None:
        """Take an update, and with it what it holds."""
        ...

    def finish(self) -> GlobalModel:
        """Return the result and begin anew (see `Aggregator.finish`)."""
        ...

    def discard(self) -> None:
        """Let all updates go and begin anew."""
        ...


class AtClose:
    """Folds everything at the end, chunk by chunk, straight into the result."""

    lets_go = False

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._updates: list[StagedUpdate] = []

    def add(self, update: StagedUpdate) -> None:
        """Keep an update until the end."""
        self._updates.append(update)

    def finish(self) -> GlobalModel:
        """Combine all updates, in the order of their clients' names."""
        updates, self._updates = sorted(self._updates, key=lambda update: update.client), []
        try:
            _require_some(self._recipe.coefficients(updates))
            with self._recipe.target() as target:
                groups = self._recipe.groups(updates)
                combine = self._at_once if len(groups) == 1 else self._in_groups
                for piece, out in combine(groups, target):
                    target.put(piece.segment, piece.first, out)
                return target.commit()
        finally:
            for update in updates:
                update.drop()

    def discard(self) -> None:
        """Let all updates go."""
        updates, self._updates = self._updates, []
        for update in updates:
            update.drop()

    def _at_once(self, groups: list[Sequence[StagedUpdate]], target: Target) -> Iterator[tuple[PieceRange, Values]]:
        """Combine each chunk in one pass, with a total that never leaves the cache."""
        recipe, (updates,) = self._recipe, groups
        coefficients, clients = recipe.coefficients(updates), [update.client for update in updates]

        def read(piece: PieceRange) -> tuple[list[Part], Values | None]:
            return [update.take(piece) for update in updates], _base(recipe, piece)

        for piece, (parts, base) in ahead(read, recipe.form.pieces):
            segment = recipe.form.spec.segments[piece.segment]
            out = target.chunk(piece.segment, piece.first, piece.first + piece.count)
            with blamed(segment, clients, piece.first):
                recipe.backend.mean(
                    parts, coefficients, out, piece.dtype, recipe.accumulator(piece), result=segment.dtype, base=base
                )
            yield piece, out

    def _in_groups(self, groups: list[Sequence[StagedUpdate]], target: Target) -> Iterator[tuple[PieceRange, Values]]:
        """Fold each chunk group by group, as the chunks of all updates do not fit into memory."""
        recipe, total = self._recipe, Total.zeros(0, "float32")

        def read(step: tuple[PieceRange, Sequence[StagedUpdate]]) -> list[Part]:
            return [update.take(step[0]) for update in step[1]]

        steps = ((piece, group) for piece in recipe.form.pieces for group in groups)
        for (piece, group), parts in ahead(read, steps):
            if group is groups[0]:
                total = recipe.backend.total(piece.count, recipe.accumulator(piece))
            recipe.fold(total, piece, group, parts)
            if group is groups[-1]:
                yield piece, _finished(recipe, piece, total, target)


class Streaming:
    """Folds updates as they are committed, in the order in which they come, on a thread of its own."""

    lets_go = True

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flcore-fold")
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[StagedUpdate] = []
        self._folds: list[Future[None]] = []
        self._coefficients: list[float] = []
        self._totals: dict[PieceRange, Total] = {}

    def add(self, update: StagedUpdate) -> None:
        """Have an update folded; whoever commits it does not wait for that."""
        update.drain()
        with self._lock:
            self._waiting.append(update)
        self._folds.append(self._thread.submit(self._fold_waiting))

    def finish(self) -> GlobalModel:
        """Wait for the last fold, and divide."""
        wait(self._folds)  # all of them, whichever fails: none may reach into the next round
        try:
            for fold in self._folds:
                fold.result()
            _require_some(self._coefficients)
            with self._recipe.target() as target:
                for piece in self._recipe.form.pieces:
                    out = _finished(self._recipe, piece, self._totals.pop(piece), target)
                    target.put(piece.segment, piece.first, out)
                return target.commit()
        finally:
            self._begin()

    def discard(self) -> None:
        """Let the folds end, and forget what they have added up."""
        wait(self._folds)
        self._begin()

    def _fold_waiting(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
        try:
            for part in self._recipe.groups(group) if group else []:  # none: an earlier call took it with its own
                self._fold(part)
        finally:
            for update in group:
                update.drop()

    def _fold(self, updates: Sequence[StagedUpdate]) -> None:
        recipe = self._recipe

        def read(piece: PieceRange) -> list[Part]:
            return [update.take(piece) for update in updates]

        for piece, parts in ahead(read, recipe.form.pieces):
            if piece not in self._totals:
                self._totals[piece] = recipe.backend.total(piece.count, recipe.accumulator(piece))
            recipe.fold(self._totals[piece], piece, updates, parts)
        self._coefficients += recipe.coefficients(updates)


def _base(recipe: Recipe, piece: PieceRange) -> Values | None:
    """Return the chunk that differences are added to."""
    base = recipe.base
    return None if base is None else base.chunk(piece.segment, piece.first, piece.first + piece.count)


def _finished(recipe: Recipe, piece: PieceRange, total: Total, target: Target) -> Values:
    """Divide a chunk's total."""
    segment = recipe.form.spec.segments[piece.segment]
    out = target.chunk(piece.segment, piece.first, piece.first + piece.count)
    with blamed(segment, [], piece.first):
        recipe.backend.finish(total, out, segment.dtype, base=_base(recipe, piece))
    return out


def _require_some(coefficients: list[float]) -> None:
    if not coefficients:
        raise QuorumError("there is nothing to aggregate: no update was committed")
    require_sum(coefficients)


PLANS: dict[str, Callable[[Recipe], Plan]] = {"at-close": AtClose, "streaming": Streaming}
"""Every plan, by the name that the command line gives it."""
