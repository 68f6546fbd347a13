"""The aggregator: stages updates, commits each whole or not at all, and combines them into the next model.

When they are folded is up to the plan (see `plans`).
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flcore_kernels import backend as backend_named

from flcore.aggregation.plans import PLANS, Recipe
from flcore.aggregation.rules import rule_named
from flcore.aggregation.staging import StagedUpdate
from flcore.aggregation.weights import accumulator_of, require_accumulator, require_weight
from flcore.errors import JobError, UpdateError
from flcore.model.model import Model
from flcore.model.spec import ModelSpec


class Aggregator:
    """Combines updates of one model.

    `rule` is a name of `flcore.RULES`; `accumulate` is "exact", "float64" or "float32" (see `flcore.aggregate`). With
    `base`, updates are differences, and the result is the base plus their combination. `plan` says when updates are
    folded: "at-close" holds them all, and folds them in the order of their clients' names; "streaming" folds each when
    it is committed, in the background, and holds a total of 4, 8 or 16 bytes per parameter. Exact sums are the same
    bits in both. `max_abs` bounds the magnitude of every element. Methods may be called from any thread.

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
        rule: str = "mean",
        accumulate: str = "exact",
        base: Model | None = None,
        backend: str = "auto",
        plan: str = "at-close",
        max_abs: float = math.inf,
    ) -> None:
        if plan not in PLANS:
            raise JobError(f"plan {plan!r} does not exist; expected one of {', '.join(PLANS)}")
        self._spec, self._max_abs = spec, max_abs
        used = {accumulator_of(segment.dtype, require_accumulator(accumulate)) for segment in spec.segments}
        self._strictest = "exact" if "exact" in used else accumulate
        self._backend = backend_named(backend)
        self._plan = PLANS[plan](Recipe(spec, rule_named(rule), accumulate, base, self._backend))
        self._lock = threading.Lock()
        self._clients: set[str] = set()

    @contextmanager
    def update(self, *, client: str, weight: float) -> Iterator[StagedUpdate]:
        """Stage an update; it is committed when the block ends well, and leaves no trace otherwise.

        `weight` is finite and >= 0 (`WeightError`); a client has one update (`UpdateError`); an update that is not
        whole at the end of the block raises `TensorMismatch`.
        """
        staged = self.stage(client, weight)
        yield staged
        self.commit(staged)

    def stage(self, client: str, weight: float) -> StagedUpdate:
        """Return a new staged update, which counts only if it is committed."""
        accepted = require_weight(weight, self._strictest, client)
        return StagedUpdate(self._spec, self._backend, client, accepted, self._max_abs)

    def commit(self, staged: StagedUpdate) -> None:
        """Make a staged update count, if it is whole and its client's first."""
        staged.require_whole()
        with self._lock:
            if staged.client in self._clients:
                raise UpdateError("it has an update in this aggregation already", client=staged.client)
            self._clients.add(staged.client)
            self._plan.add(staged)

    def finish(self) -> Model:
        """Return the combination of all committed updates; they are let go.

        Raises `QuorumError` where there is no update, `WeightError` where all weights are zero, and `AggregationError`
        where the result does not fit the tensor's dtype.
        """
        with self._lock:
            self._clients.clear()
            return self._plan.finish()
