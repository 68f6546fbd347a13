"""When updates are folded: one plan per row of `PLANS`. Exact sums give both the same bits.

`BatchPlan` keeps all updates until the end; then every chunk of all of them is combined, in the order of the clients'
names. `StreamingPlan` folds an update when it is committed, on a thread of its own, into a total of 4, 8 or 16 bytes
per parameter, and frees it: when the last update is in, only its own fold remains. Either reads what is on disk chunk
by chunk, and the next one ahead.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flcore_kernels import Total
from flcore_layout import SegmentRange
from flcore_transport.piece_format import piece_elements

from flcore.aggregation.admission_limits import require_positive_weight
from flcore.aggregation.combiner import Batch, Combiner
from flcore.aggregation.contributions import split_range
from flcore.aggregation.prefetch import BackgroundCall, BackgroundThread, prefetch
from flcore.aggregation.rules import Rule, Sum
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.storage import Storage
from flcore.errors import JobError, QuorumError, StagingError, UpdatesLost
from flcore.model.chunks import GlobalModel
from flcore.model.compression import KernelArray
from flcore.model.wire_format import WireFormat

MAX_GROUP = 8
"""How many updates are folded at once where they come in faster: the total is then read once for all of them."""

MIN_RANGE_ELEMENTS = 256
"""Of a range: tensors and blocks of codes begin at multiples of it."""


class BatchPlan:
    """Folds everything at the end, chunk by chunk, straight into the result."""

    frees_memory = False
    """Whether updates are freed as more arrive, so that waiting for memory makes sense."""

    def __init__(self, wire_format: WireFormat, combiner: Combiner, storage: Storage) -> None:
        self._wire_format, self._combiner, self._storage = wire_format, combiner, storage
        self._updates: list[StagedUpdate] = []

    def add(self, update: StagedUpdate) -> None:
        """Keep a committed update, a client's first, until the end."""
        self._updates.append(update)

    def pop_round(self) -> Any:
        """Begin anew, and return what has been added, for `finish` or `discard`."""
        updates, self._updates = self._updates, []
        return updates

    def finish(self, updates: list[StagedUpdate], lost: dict[str, str], *, leave_out: bool) -> GlobalModel:
        """Combine all updates that were taken, in the order of their clients' names (see `Aggregator.finish`).

        `lost` is told which clients' updates could not be read back, and why; all is combined once more without them.
        """
        kept: list[StagedUpdate] = []
        updates = sorted(updates, key=lambda update: update.client)
        try:
            while left := [update for update in updates if update.client not in lost]:
                try:
                    return self._combine(left)
                except StagingError as error:
                    if all(update.client != error.client for update in left):
                        raise
                    lost[error.client] = str(error)
                    if not leave_out:
                        kept = [update for update in left if update.client not in lost]
                        self._updates += kept
                        raise UpdatesLost(lost) from error
            raise _nothing_to_aggregate(lost)
        finally:
            self.discard([update for update in updates if update not in kept])

    def discard(self, updates: list[StagedUpdate]) -> None:
        """Let updates go that were taken."""
        for update in updates:
            update.discard()

    def _combine(self, updates: Sequence[StagedUpdate]) -> GlobalModel:
        """Return the combination of all updates, chunk by chunk. Chunks in memory are freed as they are read."""
        pieces: Sequence[SegmentRange] = self._wire_format.pieces
        on_disk, most, group = sum(not update.is_in_memory for update in updates), self._storage.read_chunks, 0
        if on_disk > most:
            group = most
            if not isinstance(self._combiner.rule, Sum):  # it needs all updates' elements at once: of shorter ranges
                share = [piece_elements(piece.dtype) * most // len(updates) for piece in pieces]
                sizes = [max(MIN_RANGE_ELEMENTS, each // MIN_RANGE_ELEMENTS * MIN_RANGE_ELEMENTS) for each in share]
                pieces = [part for piece, size in zip(pieces, sizes, strict=True) for part in split_range(piece, size)]
        with self._storage.create_model(self._wire_format.spec) as target:
            for piece in self._combiner.run(updates, pieces, target, group):
                if not on_disk:  # else one may be lost, and all are read once more
                    for update in updates:
                        update.discard_chunk(piece)
            return target.commit()


@dataclass
class _StreamingRound:
    """What one round of a streaming plan has folded."""

    waiting: list[StagedUpdate] = field(default_factory=list)
    folds: list[BackgroundCall[None]] = field(default_factory=list)
    coefficients: list[float] = field(default_factory=list)
    totals: dict[SegmentRange, Total] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


class StreamingPlan:
    """Folds updates as they are committed, first in, first out, on a background thread."""

    frees_memory = True

    def __init__(self, wire_format: WireFormat, combiner: Combiner, storage: Storage) -> None:
        self._wire_format, self._combiner, self._storage = wire_format, combiner, storage
        self._lock = threading.Lock()
        self._thread = BackgroundThread()
        self._sums = _StreamingRound()

    def add(self, update: StagedUpdate) -> None:
        """Schedule an update to be folded. Does not wait for it."""
        update.drain()
        sums = self._sums
        with self._lock:
            sums.waiting.append(update)
        sums.folds.append(self._thread.submit(lambda: self._fold_waiting(sums)))

    def pop_round(self) -> Any:
        """Begin anew, and return what has been added."""
        sums, self._sums = self._sums, _StreamingRound()
        return sums

    def finish(self, sums: _StreamingRound, lost: dict[str, str], *, leave_out: bool) -> GlobalModel:
        """Wait for the last fold, and divide."""
        self._wait_for_folds(sums)
        for fold in sums.folds:
            fold.result()
        if sums.lost and not leave_out:
            lost |= sums.lost
            self._sums = replace(sums, folds=[], lost={})
            raise UpdatesLost(lost)
        lost |= sums.lost
        if not sums.coefficients:
            raise _nothing_to_aggregate(lost)
        require_positive_weight(sums.coefficients)
        with self._storage.create_model(self._wire_format.spec) as target:
            for piece in self._wire_format.pieces:
                self._combiner.finish_into(target, sums.totals.pop(piece), piece)
            return target.commit()

    def discard(self, sums: _StreamingRound) -> None:
        """Let the folds end; their totals are discarded."""
        self._wait_for_folds(sums)

    def _wait_for_folds(self, sums: _StreamingRound) -> None:
        for fold in sums.folds:
            fold.wait()  # wait for all, also if one fails

    def _fold_waiting(self, sums: _StreamingRound) -> None:
        with self._lock:
            group, sums.waiting = sums.waiting[:MAX_GROUP], sums.waiting[MAX_GROUP:]
        try:
            readable = [update for update in group if self._is_readable(update, sums)]
            size = MAX_GROUP if all(update.is_in_memory for update in readable) else self._storage.read_chunks
            for first in range(0, len(readable), size):
                self._fold(readable[first : first + size], sums)
        finally:
            for update in group:
                update.discard()

    def _is_readable(self, update: StagedUpdate, sums: _StreamingRound) -> bool:
        """Read an update on disk once before it is folded: half of one could not be taken out of the totals again."""
        try:
            if not update.is_in_memory:
                for piece in self._wire_format.pieces:
                    update.read_range(piece)
        except StagingError as error:
            sums.lost[update.client] = str(error)
            return False
        return True

    def _fold(self, updates: Sequence[StagedUpdate], sums: _StreamingRound) -> None:
        def read(piece: SegmentRange) -> list[KernelArray]:
            return [update.read_range(piece) for update in updates]

        by, pieces = self._combiner.coefficients(updates), self._wire_format.pieces
        are_here = all(update.is_in_memory for update in updates)  # reading ahead would only take turns with folding
        for piece, parts in ((piece, read(piece)) for piece in pieces) if are_here else prefetch(read, pieces):
            if piece not in sums.totals:
                sums.totals[piece] = self._combiner.total(piece)
            self._combiner.fold(sums.totals[piece], Batch(piece, updates, parts, by))
            for update in updates:
                update.discard_chunk(piece)
        sums.coefficients += by


def require_plan(rule: Rule, plan: str) -> None:
    """Raise `JobError` for a plan that does not exist, or with which a rule cannot be followed."""
    if plan not in PLANS:
        raise JobError(f"plan {plan!r} does not exist; expected one of {', '.join(PLANS)}")
    if plan == "streaming" and not isinstance(rule, Sum):
        raise JobError(f"rule {rule.name!r} needs all updates at once: choose the plan batch")


def _nothing_to_aggregate(lost: dict[str, str]) -> QuorumError:
    if not lost:
        return QuorumError("there is nothing to aggregate: no update was committed")
    reasons = "; ".join(lost.values())
    return QuorumError("there is nothing to aggregate: no committed update can be read back", reasons=reasons)


PLANS: dict[str, type[BatchPlan] | type[StreamingPlan]] = {"batch": BatchPlan, "streaming": StreamingPlan}
"""Every plan, by the name that the command line gives it."""
