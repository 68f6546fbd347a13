"""The clients' updates of one training task, for workflows."""

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.client_update import ClientUpdate
from flcore.errors import JobError, ModelGone, StepOverflow, UpdatesLost
from flcore.model.chunks import GlobalModel
from flcore.server.history import RoundRecord
from flcore.server.open_attempt import average_metrics
from flcore.server.optimizer_states import OptimizerStates
from flcore.server.past_model import PastModel
from flcore.server.task_runner import TaskRequest, TaskRunner


class Updates(Protocol):
    """The clients' updates of one training task. Made by `Controller.train`.

    Attributes:
        is_skipped: Whether the round is skipped: the updates are below the quorum, and the contract says
            `on_quorum_failure = "skip"`.
    """

    is_skipped: bool

    @property
    def metrics(self) -> dict[str, float]:
        """The clients' metrics, averaged by weight."""
        ...

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients whose update was committed, sorted."""
        ...

    def contributions(self) -> tuple[ClientUpdate, ...]:
        """Return the updates, in the order of the clients' names, to read them by range before they are combined.

        What a workflow decides from them must be in `Controller.state`, and it must loop over `remaining_rounds`: after
        a restart, updates that were combined are gone.

        Raises:
            JobError: The updates were aggregated before, or the plan is "streaming", which keeps none.
            ModelGone: They were combined before the server was restarted.
        """
        ...

    def aggregate(self) -> GlobalModel:
        """Combine the updates by the job's rule, and free them.

        An update that cannot be read back from disk is lost. Its client is retried once. If that fails, the update is
        left out and its client recorded as failed.

        Returns:
            The next global model. If the round is skipped, the model that was sent.

        Raises:
            JobError: The updates were aggregated before.
            QuorumError: Too few updates are left.
        """
        ...


class StagedUpdates:
    """Updates that are staged, and committed to an aggregator.

    Args:
        task_runner: Retries the clients whose updates were lost.
        model: The model that the clients began with.
        request: The task.
        aggregator: Has the updates.
        lost: The reason of each committed update that cannot be read back, by client.
        release: Called when the updates are not needed any more.
        forget_rest: Called when the updates of a recorded call are other ones than before the restart.
        optimizer_states: The states of the rule's server optimizer. None: it has none.
    """

    def __init__(
        self,
        task_runner: TaskRunner,
        model: GlobalModel,
        request: TaskRequest,
        aggregator: Aggregator,
        lost: Mapping[str, str],
        release: Callable[[], None],
        forget_rest: Callable[[], None],
        optimizer_states: OptimizerStates | None = None,
    ) -> None:
        self.is_skipped = bool(request.skip_reason)
        self._task_runner, self._request, self._aggregator = task_runner, request, aggregator
        self._lost, self._release, self._forget_rest = lost, release, forget_rest
        self._optimizer_states = optimizer_states
        self._model: GlobalModel | None = model
        # A workflow may drop the updates without aggregating them: the last reference frees their memory and files. Not
        # at exit, when memory is freed anyway and the run's directory may be gone.
        weakref.finalize(self, aggregator.discard).atexit = False
        weakref.finalize(self, release).atexit = False

    @property
    def metrics(self) -> dict[str, float]:
        """The clients' metrics, averaged by weight."""
        return average_metrics(self._request.answers)

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients whose update was committed, sorted."""
        return tuple(sorted(self._request.answers))

    def contributions(self) -> tuple[ClientUpdate, ...]:
        """Return the updates (see `Updates`)."""
        if self._model is None:
            raise JobError(f"tasks.{self._request.task}: its updates were aggregated before; read them before that")
        return self._aggregator.contributions()

    def aggregate(self) -> GlobalModel:
        """Combine the updates (see `Updates`)."""
        model, self._model = self._model, None
        if model is None:
            raise JobError(f"tasks.{self._request.task}: its updates were aggregated before; aggregate them once")
        if self.is_skipped:
            self._aggregator.discard()
            self._release()
            return model
        with timed(self._request.record, "aggregate"):
            try:
                result = self._combine(model)
            except StepOverflow as error:
                self.is_skipped, result = True, model
                self._request.record.skipped = f"{error}; the model stays as it was"
                self._task_runner.report_skipped(self._request)
        self._task_runner.report_folded(self._request)
        self._request.record.capped_weights = dict(self._aggregator.capped_weights)
        self._request.record.rule_effects = dict(self._aggregator.effects)
        # The aggregator refers to the base model. A workflow that keeps these updates must not keep that model alive.
        self._aggregator.close()
        self._release()
        return result

    def _combine(self, model: GlobalModel) -> GlobalModel:
        """Combine the updates. Clients of lost updates are retried, once each. Updates lost again are left out."""
        retried: set[str] = set()
        if self._lost:  # since a restart
            self._task_runner.retry_lost(self._request, model, self._lost, excluding=retried)
            retried |= self._lost.keys()
        number, states = self._request.call.number, self._optimizer_states
        while True:
            if states is not None:  # not earlier: the calls before this one may be combined later than it was made
                self._aggregator.optimizer_state = states.before(number)
            try:
                result = self._aggregator.finish(exclude_lost=False)
            except UpdatesLost as error:
                self._task_runner.retry_lost(self._request, model, error.lost, excluding=retried)
                retried |= error.lost.keys()
            else:
                if retried:
                    self._task_runner.require_quorum(self._request)
                    recorded = self._request.call.result
                    if recorded is not None and tuple(recorded["clients"]) != self.clients:
                        self._forget_rest()
                    self._request.end(has_answers=True)  # with other answers than before
                if states is not None and self._aggregator.optimizer_state is not None:
                    states.keep(number, self._aggregator.optimizer_state)
                return result


class PastUpdates:
    """Updates that were combined before the server was restarted."""

    def __init__(self, model: GlobalModel, round_number: int, result: Mapping[str, Any]) -> None:
        self.is_skipped: bool = result["is_skipped"]
        self.metrics: dict[str, float] = result["metrics"]
        self.clients: tuple[str, ...] = tuple(result["clients"])
        self._model, self._round = model, round_number

    def contributions(self) -> tuple[ClientUpdate, ...]:
        """Raise `ModelGone`."""
        raise ModelGone(
            f"the updates of round {self._round} were combined before the server was restarted: have the workflow loop "
            "over remaining_rounds(), and keep what it needs of them in control.state"
        )

    def aggregate(self) -> GlobalModel:
        """Return a handle of the model that they gave; or the model that was sent, if the round was skipped."""
        return self._model if self.is_skipped else PastModel(self._model.spec, self._round)


@contextmanager
def timed(record: RoundRecord, phase: str) -> Iterator[None]:
    """Add the duration of the block to the record's phase."""
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[phase] = record.seconds.get(phase, 0.0) + time.perf_counter() - started
