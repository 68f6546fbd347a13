"""When updates are folded: one plan per row of `PLANS`. Exact sums give the same bits with both.

`BatchPlan` keeps all updates until the end and then combines every chunk of all of them, in the order of the clients'
names. `StreamingPlan` folds an update when it is committed, on a background thread, into a total of 4, 8 or 16 bytes
per parameter, and frees it: after the last commit, only that update's fold remains.

`Aggregator` calls `add`, `pop_round` and `restore_round` with its lock held, so it guards the plan's current round. It
calls `finish` and `discard` without the lock, with a round that `pop_round` has taken out of the plan.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from flcore_kernels import Total
from flcore_layout import ALIGNMENT, SegmentRange
from flcore_transport.piece_format import piece_elements

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.combiner import MAX_GROUP, Combiner
from flcore.aggregation.contributions import split_range
from flcore.aggregation.optimizer_state import OptimizerStep, ServerOptimizer
from flcore.aggregation.prefetch import BackgroundCall, BackgroundThread, prefetch
from flcore.aggregation.range_inputs import RangeInputs
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.storage import Storage
from flcore.aggregation.weight_shares import cap_weights
from flcore.errors import JobError, QuorumError, StagingError, UpdatesLost
from flcore.model.chunks import GlobalModel
from flcore.model.compression import KernelArray
from flcore.model.wire_format import WireFormat
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import Chain, Rule, streamed_sum


class BatchPlan:
    """Combines all updates at the end, chunk by chunk, into the result."""

    frees_memory = False
    """Whether updates are freed while others arrive, so that it makes sense to wait for memory."""

    def __init__(
        self, wire_format: WireFormat, combiner: Combiner, storage: Storage, optimizer: ServerOptimizer | None = None
    ) -> None:
        self._wire_format, self._combiner, self._storage, self._optimizer = wire_format, combiner, storage, optimizer
        self._updates: list[StagedUpdate] = []
        self.capped_weights: dict[str, float] = {}
        """The weights that `max_share` has capped in the last result, by client."""
        self.effects: Mapping[str, RuleEffect] = {}
        """What the rule did to updates in the last result, by client."""

    def add(self, update: StagedUpdate) -> None:
        """Keep a committed update until the end."""
        self._updates.append(update)

    def held(self) -> list[StagedUpdate]:
        """Return the updates that are kept."""
        return list(self._updates)

    def pop_round(self) -> Any:
        """Begin a new round, and return the old one for `finish` or `discard`."""
        updates, self._updates = self._updates, []
        return updates

    def restore_round(self, taken: list[StagedUpdate]) -> None:
        """Take back a round that `finish` has refused with `UpdatesLost`."""
        self._updates += taken

    def finish(self, taken: list[StagedUpdate], lost: dict[str, str], *, exclude_lost: bool) -> GlobalModel:
        """Combine a round's updates, in the order of their clients' names (see `Aggregator.finish`).

        An update that cannot be read back is added to `lost`, and all others are combined again without it. Raises
        `UpdatesLost` instead if `exclude_lost` is False, and keeps the other updates in `taken`.
        """
        kept: list[StagedUpdate] = []
        updates = sorted(taken, key=lambda update: update.client)
        try:
            while readable := [update for update in updates if update.client not in lost]:
                try:
                    return self._combine(readable)
                except StagingError as error:
                    if all(update.client != error.client for update in readable):
                        raise
                    lost[error.client] = str(error)
                    if not exclude_lost:
                        kept = taken[:] = [update for update in readable if update.client not in lost]
                        raise UpdatesLost(lost) from error
            raise _nothing_to_aggregate(lost)
        finally:
            self.discard([update for update in updates if update not in kept])

    def discard(self, updates: list[StagedUpdate]) -> None:
        """Free a round's updates."""
        for update in updates:
            update.discard()

    def _cap_weights(self, updates: Sequence[StagedUpdate]) -> None:
        """Cap the weights of updates that would have too large a share. Anew each time: a lost one changes the sum."""
        max_share, self.capped_weights = self._combiner.settings.max_share, {}
        if max_share == 1:
            return
        announced = [update.announced_weight for update in updates]
        for update, weight in zip(updates, cap_weights(announced, max_share), strict=True):
            update.weight = weight
            if weight < update.announced_weight:
                self.capped_weights[update.client] = weight

    def _combine(self, updates: Sequence[StagedUpdate]) -> GlobalModel:
        """Return the combination of all updates.

        At most `read_chunks` chunks are read from disk at once. If more updates are on disk, a sum folds them in groups
        of that size. Other rules need all updates' elements at once, so they get ranges that are shorter than a chunk.
        """
        self._cap_weights(updates)
        ranges: Sequence[SegmentRange] = self._wire_format.pieces
        on_disk, read_chunks, group = sum(not update.is_in_memory for update in updates), self._storage.read_chunks, 0
        if on_disk > read_chunks:
            group = read_chunks
            if self._combiner.sum is None:
                # A multiple of ALIGNMENT holds whole blocks of codes with their scales.
                # The points that a chain makes of the updates take as much memory again.
                parts = len(updates) * (2 if isinstance(self._combiner.rule, Chain) else 1)
                shares = [piece_elements(range_.dtype) * read_chunks // parts for range_ in ranges]
                sizes = [max(ALIGNMENT, share // ALIGNMENT * ALIGNMENT) for share in shares]
                ranges = [
                    part for range_, size in zip(ranges, sizes, strict=True) for part in split_range(range_, size)
                ]
        with _begin_step(self._optimizer) as step, self._storage.create_model(self._wire_format.spec) as target:
            plan = self._combiner.plan(updates, ranges)
            self.effects = plan.effects
            for range_ in self._combiner.run(plan, ranges, target, group, step):
                # Chunks in memory are freed as the result grows. But if any update is on disk, it may be lost, and then
                # all are read again.
                if not on_disk:
                    for update in updates:
                        update.discard_chunk(range_)
            return target.commit()


@dataclass
class _StreamingRound:
    """One round of a streaming plan: its committed updates and their totals.

    `waiting` is shared with the background thread, under the plan's lock. The thread alone writes `coefficients`,
    `totals` and `lost`; others read them after they have waited for all `folds`.
    """

    waiting: list[StagedUpdate] = field(default_factory=list)
    folds: list[BackgroundCall[None]] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)
    totals: dict[SegmentRange, Total] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


class StreamingPlan:
    """Folds updates as they are committed, first in, first out, on a background thread."""

    frees_memory = True
    # A sum that has begun cannot cap weights, nor leave an update out (`require_plan`).
    capped_weights: ClassVar[dict[str, float]] = {}
    effects: ClassVar[dict[str, RuleEffect]] = {}

    def __init__(
        self, wire_format: WireFormat, combiner: Combiner, storage: Storage, optimizer: ServerOptimizer | None = None
    ) -> None:
        self._wire_format, self._combiner, self._storage, self._optimizer = wire_format, combiner, storage, optimizer
        self._lock = threading.Lock()
        self._thread = BackgroundThread()
        self._round = _StreamingRound()

    def add(self, update: StagedUpdate) -> None:
        """Schedule a committed update to be folded. Does not wait for it."""
        update.release_reservation()
        current = self._round
        with self._lock:
            current.waiting.append(update)
        current.folds.append(self._thread.submit(lambda: self._fold_waiting(current)))

    def held(self) -> list[StagedUpdate]:
        """Raise `JobError`: updates are folded as they come."""
        raise JobError("the plan streaming keeps no updates: choose the plan batch to read them one by one")

    def pop_round(self) -> Any:
        """Begin a new round, and return the old one for `finish` or `discard`."""
        taken, self._round = self._round, _StreamingRound()
        return taken

    def restore_round(self, taken: _StreamingRound) -> None:
        """Take back a round that `finish` has refused with `UpdatesLost`. Its totals lack the lost updates.

        It replaces the current round, which is empty: `Aggregator` refuses commits while it finishes a round that may
        be restored.
        """
        self._round = replace(taken, folds=[], lost={})

    def finish(self, taken: _StreamingRound, lost: dict[str, str], *, exclude_lost: bool) -> GlobalModel:
        """Wait for the last fold, and divide (see `Aggregator.finish`).

        Updates that cannot be read back are added to `lost`. Raises `UpdatesLost` for them if `exclude_lost` is False.
        """
        self._wait_for_folds(taken)
        for fold in taken.folds:
            fold.result()
        lost |= taken.lost
        if taken.lost and not exclude_lost:
            raise UpdatesLost(lost)
        if not taken.coefficients:
            raise _nothing_to_aggregate(lost)
        require_positive_weight(taken.coefficients)
        with _begin_step(self._optimizer) as step, self._storage.create_model(self._wire_format.spec) as target:
            for chunk in self._wire_format.pieces:
                self._combiner.finish_into(target, taken.totals.pop(chunk), chunk, step)
            return target.commit()

    def discard(self, taken: _StreamingRound) -> None:
        """Wait for a round's folds, whose totals are dropped. The folds free the updates."""
        self._wait_for_folds(taken)

    def _wait_for_folds(self, taken: _StreamingRound) -> None:
        """Wait for all folds, also if one fails: its successors still use the totals."""
        for fold in taken.folds:
            fold.wait()

    def _fold_waiting(self, taken: _StreamingRound) -> None:
        """Fold up to `MAX_GROUP` waiting updates. Runs once per update, so a run may find none left."""
        with self._lock:
            group, taken.waiting = taken.waiting[:MAX_GROUP], taken.waiting[MAX_GROUP:]
        try:
            readable = [update for update in group if self._is_readable(update, taken)]
            size = MAX_GROUP if all(update.is_in_memory for update in readable) else self._storage.read_chunks
            for first in range(0, len(readable), size):
                self._fold(readable[first : first + size], taken)
        finally:
            for update in group:
                update.discard()

    def _is_readable(self, update: StagedUpdate, taken: _StreamingRound) -> bool:
        """Read an update on disk once before it is folded: half of one could not be subtracted from the totals."""
        try:
            if not update.is_in_memory:
                for chunk in self._wire_format.pieces:
                    update.read_range(chunk)
        except StagingError as error:
            taken.lost[update.client] = str(error)
            return False
        return True

    def _fold(self, updates: Sequence[StagedUpdate], taken: _StreamingRound) -> None:
        def read(chunk: SegmentRange) -> list[KernelArray]:
            return [update.read_range(chunk) for update in updates]

        coefficients, chunks = self._combiner.coefficients(updates), self._wire_format.pieces
        # Chunks in memory are views. A thread that reads ahead would only compete with the fold for the interpreter.
        are_in_memory = all(update.is_in_memory for update in updates)
        steps = ((chunk, read(chunk)) for chunk in chunks) if are_in_memory else prefetch(read, chunks)
        for chunk, arrays in steps:
            if chunk not in taken.totals:
                taken.totals[chunk] = self._combiner.new_total(chunk)
            self._combiner.fold(taken.totals[chunk], RangeInputs(chunk, updates, arrays, coefficients))
            for update in updates:
                update.discard_chunk(chunk)
        taken.coefficients += coefficients


def require_plan(rule: Rule, plan: str, max_share: float = 1.0) -> None:
    """Raise `JobError` for a plan that does not exist, or that a rule or a bound on shares does not allow."""
    if plan not in PLANS:
        raise JobError(f"plan {plan!r} does not exist; expected one of {', '.join(PLANS)}")
    if plan == "streaming" and streamed_sum(rule) is None:
        raise JobError(f"rule {rule.name!r} needs all updates at once: choose the plan batch")
    if plan == "streaming" and max_share != 1:
        raise JobError(f"max_share = {max_share:g} needs the weights of all updates: choose the plan batch")


def _begin_step(optimizer: ServerOptimizer | None) -> AbstractContextManager[OptimizerStep | None]:
    return nullcontext() if optimizer is None else optimizer.begin()


def _nothing_to_aggregate(lost: dict[str, str]) -> QuorumError:
    if not lost:
        return QuorumError("there is nothing to aggregate: no update was committed")
    reasons = "; ".join(lost.values())
    return QuorumError("there is nothing to aggregate: no committed update can be read back", reasons=reasons)


PLANS: dict[str, type[BatchPlan] | type[StreamingPlan]] = {"batch": BatchPlan, "streaming": StreamingPlan}
"""Every plan, by the name that the command line gives it."""
