"""The aggregator: stages updates, commits each whole or not at all, and combines them into the next model.

The plan decides when updates are folded (see `plans`).
"""

import errno
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager

from flcore_kernels import backend as backend_named

from flcore.aggregation.admission_limits import MAX_UPDATES, AggregationSettings
from flcore.aggregation.budget import Budget
from flcore.aggregation.client_update import ClientUpdate
from flcore.aggregation.combiner import Combiner
from flcore.aggregation.optimizer_state import ServerOptimizer
from flcore.aggregation.plans import PLANS, require_plan
from flcore.aggregation.reference_model import ReferenceModel
from flcore.aggregation.staged_update import StagedUpdate
from flcore.aggregation.staging import SPILL_AFTER_S, Staging
from flcore.aggregation.storage import Storage, read_chunks_within
from flcore.disk_errors import ADVICE
from flcore.errors import JobError, SpecError, StagingError, UpdateError, UpdatesLost
from flcore.model.chunks import GlobalModel
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.rules.effect import RuleEffect
from flcore.rules.kinds import Rule, step_of
from flcore.rules.named import resolve_rule


class Aggregator:
    """Combines updates of one model: stages each, commits it whole or not at all, and folds it.

    An admitted update never makes `finish` fail (see `flcore.aggregation.admission_limits`). Exact sums have the same
    bits with both plans. Methods may be called from any thread.

    Args:
        spec: The tensors of the model: names, dtypes and shapes.
        rule: A key of `flcore.RULES` (default: "mean"), or a rule.
        accumulate: "exact" (default), "float64" or "float32" (see `flcore.aggregate`).
        base: The model to which updates are differences; the result is the base plus their combination. Default:
            None, updates are whole models.
        reference: The model that clients began with, where updates are whole models. Elements that are not averaged
            must be equal to its elements (see `flcore.aggregate`). A model with unsigned bytes needs `reference`,
            `base` or `average_bytes`. Default: None.
        backend: "auto" (default), "cpu", "cuda" or "cuda:1" (see `flcore.aggregate`).
        plan: When updates are folded.

            - "batch" (default): in `finish`, in the order of the clients' names. Holds all updates until then.
            - "streaming": on commit, in the background. Holds a total of 4, 8 or 16 bytes per parameter.
        budget_bytes: The budget of memory in bytes, at least 64 MiB (see `Budget`). Updates beyond its part for staging
            go to temporary files. Default: None, no bound.
        max_abs: The largest magnitude of an element. Default: no bound but that of the dtype.
        max_share: The largest share of one update in the sum of all weights. The weight of a larger one is capped (see
            `capped_weights`). Needs the plan "batch". Default: 1, no bound.
        seed: For rules with random choices (`bucketing`). Default: 0.
        optimizer_state: The state of the rule's server optimizer (`fed_adam`), as `optimizer_state` of the aggregator
            of the round before has it. Default: None, no step was made.
        average_bytes: Average unsigned bytes, instead of keeping them unchanged. Default: False.
        wire_format: The format in which a server receives updates. Default: None, uncompressed.
        storage: The storage that a server's aggregations share; it replaces `plan` and `budget_bytes`. Default: None.

    Raises:
        SpecError: The model has unsigned bytes, and neither a reference model nor `average_bytes` is given.
        JobError: The rule, the accumulator or the plan is unknown, or they do not fit each other.
        BudgetError: `budget_bytes` is below 64 MiB.

    Example:
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
        max_share: float = 1.0,
        seed: int = 0,
        optimizer_state: GlobalModel | None = None,
        average_bytes: bool = False,
        wire_format: WireFormat | None = None,
        storage: Storage | None = None,
    ) -> None:
        storage = storage or _storage(plan, budget_bytes)
        chosen = resolve_rule(rule)
        step = step_of(chosen)
        device = backend_named(backend if step is None else "cpu")  # steps have no CUDA twin
        settings = AggregationSettings(chosen, accumulate, device, average_bytes, max_abs, max_share, seed)
        require_plan(settings.rule, storage.plan, max_share)
        model = base or reference
        if model is None and not average_bytes and any(segment.dtype == "uint8" for segment in spec.segments):
            raise SpecError(
                "the model has unsigned bytes, which may be packed codes: give reference=, the model that clients "
                "began with, to have them stay as they are, or average_bytes=True if they are numbers"
            )
        reference_model = (
            None if model is None else ReferenceModel(spec, model, settings.device, updates_are_deltas=base is not None)
        )
        self._combiner = Combiner(spec, settings, reference_model)
        self._wire_format, self._staging = wire_format or WireFormat.uncompressed(spec), storage.staging
        if step is not None and model is None:
            raise JobError(f"rule {chosen.name!r}: give reference=, the model that clients began with, for {step.name}")
        mean_of = "models" if base is None else "differences"
        self._optimizer = (
            None if step is None else ServerOptimizer(step, spec, mean_of, storage.create_state, optimizer_state)
        )
        self._plan = PLANS[storage.plan](self._wire_format, self._combiner, storage, self._optimizer)
        self._lock = threading.Lock()
        self._clients: set[str] = set()
        self._may_restore_round = False
        self.lost: dict[str, str] = {}
        """The updates that the last `finish` could not read back from disk: the error, by client."""
        self.capped_weights: dict[str, float] = {}
        """The weights with which capped updates count in the last result, by client (`max_share`)."""
        self.effects: Mapping[str, RuleEffect] = {}
        """What the rule did to updates in the last result, by client: excluded, clipped or scaled ones."""

    @property
    def optimizer_state(self) -> GlobalModel | None:
        """The state of the rule's server optimizer after the last result; None before the first one. May be set."""
        return None if self._optimizer is None else self._optimizer.state

    @optimizer_state.setter
    def optimizer_state(self, state: GlobalModel | None) -> None:
        if self._optimizer is not None:
            self._optimizer.state = state

    @contextmanager
    def update(self, *, client: str, weight: float) -> Iterator[StagedUpdate]:
        """Stage an update, and commit it at the end of the `with` block; an exception discards it.

        Args:
            client: The client's name. A client has at most one update per aggregation.
            weight: The update's weight, finite and >= 0.

        Yields:
            The staged update, whose `write` and `write_all` take its elements.

        Raises:
            WeightError: The weight is negative or not finite.
            UpdateError: The client has an update already, or the aggregation is full.
            TensorMismatch: The update is incomplete at the end of the block.
            StagingError: The update could be staged neither in memory nor on disk.
        """
        staged = self.stage(client, weight)
        try:
            allocated = self.allocate(staged)
            wait([allocated], SPILL_AFTER_S)
            if not allocated.done():
                staged.spill()
            allocated.result()
            yield staged
            self.commit(staged)
        except BaseException:
            staged.discard()
            raise

    def stage(self, client: str, weight: float, upload_key: str = "") -> StagedUpdate:
        """Return a new staged update. It takes elements once `allocate` is done, and counts once it is committed.

        Args:
            client: The client's name.
            weight: The update's weight.
            upload_key: Identifies the upload in staging that is kept (`KeptStaging`): an upload that an earlier process
                began goes on behind the pieces that are on the disk. Default: empty.
        """
        staged = self._new_update(client, weight, upload_key)
        if (store := self._staging.find_store(client, upload_key)) is not None:
            staged.adopt(store)
        return staged

    def restore(self, client: str, weight: float, directory: str) -> None:
        """Commit the update that an earlier process committed to `directory` of the staging (`KeptStaging`).

        Raises `StagingError` unless all of it is there.
        """
        staged = self._new_update(client, weight, "")
        staged.adopt(self._staging.open_store(directory, client))
        if staged.appended < len(self._wire_format.pieces):
            raise StagingError(
                f"the disk does not keep it: only {staged.appended} of {len(self._wire_format.pieces)} pieces in "
                f"{directory} are as they were written; {ADVICE[errno.EIO]}",
                client=client,
            )
        self.commit(staged)

    def _new_update(self, client: str, weight: float, upload_key: str) -> StagedUpdate:
        accepted = self._combiner.admit_weight(weight, client)
        return StagedUpdate(self._wire_format, self._combiner, self._staging, client, accepted, upload_key)

    def allocate(self, staged: StagedUpdate) -> "Future[None]":
        """Allocate memory or disk for a staged update; the future is done when it has either."""
        return staged.allocate(may_wait=self._plan.frees_memory)

    def commit(self, staged: StagedUpdate) -> None:
        """Commit a staged update that is complete and its client's first.

        Raises:
            TensorMismatch: The update is incomplete.
            UpdateError: The client has an update already, the aggregation is full, or `finish` runs with
                `exclude_lost=False`.
        """
        staged.require_complete()
        staged.seal()
        with self._lock:
            if self._may_restore_round:
                raise UpdateError("the aggregation is being finished: commit again afterwards", client=staged.client)
            if staged.client in self._clients:
                raise UpdateError("it has an update in this aggregation already", client=staged.client)
            if len(self._clients) >= MAX_UPDATES:
                raise UpdateError(f"a round takes {MAX_UPDATES} updates, and has them", client=staged.client)
            self._clients.add(staged.client)
            self._plan.add(staged)

    def contributions(self) -> tuple[ClientUpdate, ...]:
        """Return the committed updates, in the order of the clients' names. They can be read until they are combined.

        Raises `JobError` with the plan "streaming", which keeps none.
        """
        with self._lock:
            held = self._plan.held()
        return tuple(ClientUpdate(update, self._wire_format) for update in sorted(held, key=lambda each: each.client))

    def finish(self, *, exclude_lost: bool = True) -> GlobalModel:
        """Return the combination of all committed updates, and free them.

        Updates that are committed while it runs count for the next result; with `exclude_lost=False` they are refused.

        Args:
            exclude_lost: Exclude updates that cannot be read back from disk, and record them in `lost` (default). If
                False, raise `UpdatesLost`: the other updates stay committed, and the clients of lost ones may commit
                again before the next `finish`.

        Returns:
            The combined model.

        Raises:
            QuorumError: There is no update.
            AggregationError: There are fewer updates than 1 / `max_share`.
            WeightError: All weights are zero.
            UpdatesLost: Updates could not be read back, and `exclude_lost` is False.
        """
        with self._lock:  # released while updates are folded, which takes long
            clients, self._clients, self.lost = self._clients, set(), {}
            taken = self._plan.pop_round()
            self._may_restore_round = not exclude_lost
        try:
            result = self._plan.finish(taken, self.lost, exclude_lost=exclude_lost)
            self.capped_weights, self.effects = self._plan.capped_weights, self._plan.effects
            return result
        except UpdatesLost as error:
            # Nothing was committed since `pop_round`, so the restored round replaces an empty one.
            with self._lock:
                self._plan.restore_round(taken)
                self._clients |= clients - error.lost.keys()
            raise
        finally:
            with self._lock:
                self._may_restore_round = False

    def close(self) -> None:
        """Free the base and the reference model, after the last round."""
        if self._combiner.reference_model is not None:
            self._combiner.reference_model.close()

    def discard(self) -> None:
        """Discard all committed updates without a result, and free their memory."""
        with self._lock:
            self._clients.clear()
            taken = self._plan.pop_round()
        self._plan.discard(taken)


def _storage(plan: str, budget_bytes: int | None) -> Storage:
    """Return the storage of one aggregation: staging and reads from disk within a budget, and results in memory."""
    if budget_bytes is None:
        return Storage(plan)
    budget = Budget(budget_bytes)
    return Storage(plan, Staging(budget.staging_bytes), read_chunks=read_chunks_within(budget.working_bytes))
