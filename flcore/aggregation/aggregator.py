"""The aggregator: stages updates, commits each whole or not at all, and combines them into the next model.

When they are folded is up to the plan (see `plans`).
"""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager

from flcore_kernels import backend as backend_named

from flcore.aggregation.admission_limits import MAX_UPDATES, AggregationSettings
from flcore.aggregation.budget import Budget
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.plans import PLANS, require_plan
from flcore.aggregation.reference_model import ReferenceModel
from flcore.aggregation.rules import Rule, resolve_rule
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import Staging
from flcore.aggregation.storage import Storage, read_chunks_within
from flcore.errors import SpecError, UpdateError, UpdatesLost
from flcore.model.chunks import GlobalModel
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat

SPILL_AFTER_S = 2.0
"""How long an update waits for room in memory before it goes to disk."""


class Aggregator:
    """Combines updates of one model.

    `rule` is a name of `flcore.RULES`, or a rule; `accumulate` is "exact", "float64" or "float32" (see
    `flcore.aggregate`). With `base`, updates are differences, and the result is the base plus their combination.
    `reference` is the model that clients began with, where updates are whole models: elements that are not averaged
    must be those of it (see `flcore.aggregate`), and a model with unsigned bytes needs it, a base, or `average_bytes`.
    What is admitted never makes `finish` fail (see `flcore.aggregation.admission_limits`). `plan` says when updates are
    folded: "batch" holds them all, and folds them in the order of their clients' names; "streaming" folds each when
    it is committed, in the background, and holds a total of 4, 8 or 16 bytes per parameter. Exact sums are the same
    bits in both. `budget_bytes` bounds the memory of staged updates, which go to temporary files beyond it; `max_abs`
    the magnitude of every element. A server gives the `wire_format` in which updates travel, and the `storage` that its
    aggregations share, which stands for `plan` and `budget_bytes`. Methods may be called from any thread.

    >>> import numpy as np
    >>> spec = ModelSpec.of({"w": np.zeros(2, np.float32)})
    >>> aggregator = Aggregator(spec)
    >>> for client, weight, value in [("a", 1, [0.0, 4.0]), ("b", 3, [4.0, 0.0])]:
    ...     with aggregator.update(client=client, weight=weight) as update:
    ...         update.write("w", np.array(value, np.float32))
    >>> aggregator.finish().arrays()["w"].tolist()
    [3.0, 1.0]
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        rule: str | Rule = "mean",
        accumulate: str = "exact",
        base: GlobalModel | None = None,
        reference: GlobalModel | None = None,
        backend: str = "auto",
        plan: str = "batch",
        budget_bytes: int | None = None,
        max_abs: float = math.inf,
        average_bytes: bool = False,
        wire_format: WireFormat | None = None,
        storage: Storage | None = None,
    ) -> None:
        storage = storage or _storage(plan, budget_bytes)
        settings = AggregationSettings(resolve_rule(rule), accumulate, backend_named(backend), average_bytes, max_abs)
        require_plan(settings.rule, storage.plan)
        model = base or reference
        if model is None and not average_bytes and any(segment.dtype == "uint8" for segment in spec.segments):
            raise SpecError(
                "the model has unsigned bytes, which may be packed codes: give reference=, the model that clients "
                "began with, to have them stay as they are, or average_bytes=True if they are numbers"
            )
        reference_model = (
            None if model is None else ReferenceModel(spec, model, settings.device, are_deltas=base is not None)
        )
        self._combiner = Combiner(spec, settings, reference_model)
        self._wire_format, self._staging = wire_format or WireFormat.uncompressed(spec), storage.staging
        self._plan = PLANS[storage.plan](self._wire_format, self._combiner, storage)
        self._lock = threading.Lock()
        self._clients: set[str] = set()
        self.lost: dict[str, str] = {}
        """Clients whose committed update could not be read back by the last `finish`, which left them out; and why."""

    @contextmanager
    def update(self, *, client: str, weight: float) -> Iterator[StagedUpdate]:
        """Stage an update; it is committed when the block ends well, and leaves no trace otherwise.

        `weight` is finite and >= 0 (`WeightError`); a client has one update (`UpdateError`); an update that is not
        whole at the end of the block raises `TensorMismatch`.
        """
        staged = self.stage(client, weight)
        try:
            begun = self.allocate(staged)
            wait([begun], SPILL_AFTER_S)
            if not begun.done():
                staged.spill()
            begun.result()
            yield staged
            self.commit(staged)
        except BaseException:
            staged.discard()
            raise

    def stage(self, client: str, weight: float) -> StagedUpdate:
        """Return a new staged update, which takes elements once it has begun, and counts only if it is committed."""
        accepted = self._combiner.admit_weight(weight, client)
        return StagedUpdate(self._wire_format, self._combiner, self._staging, client, accepted)

    def allocate(self, staged: StagedUpdate) -> "Future[None]":
        """Find a place for a staged update; the future is done when there is one."""
        return staged.allocate(may_wait=self._plan.frees_memory)

    def commit(self, staged: StagedUpdate) -> None:
        """Make a staged update count, if it is whole and its client's first."""
        staged.require_complete()
        staged.seal()
        with self._lock:
            if staged.client in self._clients:
                raise UpdateError("it has an update in this aggregation already", client=staged.client)
            if len(self._clients) >= MAX_UPDATES:
                raise UpdateError(f"a round takes {MAX_UPDATES} updates, and has them", client=staged.client)
            self._clients.add(staged.client)
            self._plan.add(staged)

    def finish(self, *, leave_out: bool = True) -> GlobalModel:
        """Return the combination of all committed updates; they are let go.

        An update that cannot be read back from disk is left out, and named in `lost`; or `UpdatesLost` is raised, if
        not `leave_out`: the others stay, and their clients may commit once more before the next `finish`. Raises
        `QuorumError` where there is no update, and `WeightError` where all weights are zero.
        """
        with self._lock:  # not while the updates are folded
            clients, self._clients, self.lost = self._clients, set(), {}
            taken = self._plan.pop_round()
        try:
            return self._plan.finish(taken, self.lost, leave_out=leave_out)
        except UpdatesLost as error:
            with self._lock:
                self._clients |= clients - error.lost.keys()
            raise

    def close(self) -> None:
        """Let the base and the reference go, after the last round."""
        if self._combiner.reference_model is not None:
            self._combiner.reference_model.close()

    def discard(self) -> None:
        """Let all committed updates go without a result, and the room that they take."""
        with self._lock:
            self._clients.clear()
            taken = self._plan.pop_round()
        self._plan.discard(taken)


def _storage(plan: str, budget_bytes: int | None) -> Storage:
    """Return the storage of one aggregation, in memory up to a budget of which half is for staging."""
    if budget_bytes is None:
        return Storage(plan)
    budget = Budget(budget_bytes)
    return Storage(plan, Staging(budget.staging_bytes), read_chunks=read_chunks_within(budget.working_bytes))
