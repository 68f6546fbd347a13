"""The controller: the interface for workflows. A workflow is a function of a `Controller`; see `workflows`."""

import hashlib
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.plans import require_plan
from flcore.aggregation.storage import Storage
from flcore.errors import JobError, SpecError, UpdatesLost
from flcore.job.job import Job
from flcore.job.messages import TaskMessage
from flcore.model.chunks import GlobalModel
from flcore.model.model import Arrays, NamedArrays
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.server.events import Observer, RoundFinished
from flcore.server.history import RoundRecord
from flcore.server.open_round import average_metrics
from flcore.server.results import Results
from flcore.server.task_runner import TaskRequest, TaskRunner


class Updates:
    """The clients' answers to one training task. Made by `Controller.train`.

    `is_skipped` is true if they are below the quorum, and the contract has the round skipped.
    """

    def __init__(
        self,
        task_runner: TaskRunner,
        model: GlobalModel,
        request: TaskRequest,
        aggregator: Aggregator,
        record: RoundRecord,
    ) -> None:
        self.is_skipped = bool(request.skip_reason)
        self._task_runner, self._request, self._aggregator, self._record = task_runner, request, aggregator, record
        self._model: GlobalModel | None = model
        # Dropping the last reference frees their memory, aggregated or not.
        weakref.finalize(self, aggregator.discard).atexit = False

    @property
    def metrics(self) -> dict[str, float]:
        """The clients' metrics, averaged by weight."""
        return average_metrics(self._request.answers)

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of the clients whose update was committed, sorted."""
        return tuple(sorted(self._request.answers))

    def aggregate(self) -> GlobalModel:
        """Combine the updates by the job's rule, and free them.

        An update that cannot be read back from disk is asked for again. If that fails, it is left out and recorded as
        lost.

        Returns:
            The next global model. If the round is skipped, the present model.

        Raises:
            JobError: The updates were aggregated before.
            QuorumError: Too few updates are left.
        """
        model, self._model = self._model, None
        if model is None:
            raise JobError(f"tasks.{self._request.task}: its updates were aggregated before")
        if self.is_skipped:
            self._aggregator.discard()
            return model
        with _timed(self._record, "aggregate"):
            result = self._combine(model)
        self._aggregator.close()  # a workflow that keeps these updates keeps no model alive
        return result

    def _combine(self, model: GlobalModel) -> GlobalModel:
        """Combine the updates. Lost updates are asked for again, once per client."""
        rerun_clients: set[str] = set()
        while True:
            try:
                result = self._aggregator.finish(leave_out=False)
            except UpdatesLost as error:
                self._task_runner.rerun_lost(self._request, model, error.lost, excluding=rerun_clients)
                rerun_clients |= error.lost.keys()
            else:
                if rerun_clients:
                    self._task_runner.require_quorum(self._request)
                return result


class Controller:
    """The server's side of a running job, for workflows: `sample`, `train`, `validate`, `keep`.

    A workflow loops over `rounds()`. Each round adds one record to the history.

    Example:
        A workflow::

            def federated_averaging(controller):
                model = controller.initial_model
                for _ in controller.rounds():
                    clients = controller.sample()
                    model = controller.train(model, clients).aggregate()
                    controller.keep(model, controller.validate(model, clients))
    """

    def __init__(
        self,
        job: Job,
        model: GlobalModel,
        task_runner: TaskRunner,
        results: Results,
        observe: Observer,
        storage: Storage,
    ) -> None:
        self.job, self._storage, self._rule = job, storage, job.rule()
        require_plan(self._rule, storage.plan)
        self._spec = model.spec
        self._initial: GlobalModel | None = model
        self._initial_ref = weakref.ref(model)
        self._task_runner, self._results, self._observe = task_runner, results, observe
        self._record = RoundRecord(0)

    @property
    def initial_model(self) -> GlobalModel:
        """The first global model. It is held by a weak reference, and loaded again if it was freed."""
        model = self._initial or self._initial_ref()
        self._initial = None
        if model is None:
            model = self._storage.copy_model(self.job.initial_model())
            self._initial_ref = weakref.ref(model)
        return model

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round, from 1."""
        for index in range(1, self.job.contract.server.rounds + 1):
            self._record = RoundRecord(index)
            with _timed(self._record, "round"):
                yield index
            self._results.add(self._record)
            self._observe(RoundFinished(self._record))

    def sample(self, fraction: float | None = None) -> list[str]:
        """Draw clients for this round from those connected, with a seed from the job's seed and the round.

        Waits until a quorum is connected: for the time of one round, and again for each retry of a round.

        Args:
            fraction: The fraction of connected clients to draw, from 0 to 1; at least the quorum is drawn. Default:
                None, the contract's `server.fraction`.

        Returns:
            The clients' names, sorted.

        Raises:
            QuorumError: Too few clients are connected in time.
        """
        server = self.job.contract.server
        connected = self._task_runner.await_quorum(server.quorum)
        count = max(server.quorum, round((server.fraction if fraction is None else fraction) * len(connected)))
        draw = np.random.default_rng(derive_seed(self.job.contract.seed, self._record.round, "sample"))
        return sorted(draw.choice(connected, min(count, len(connected)), replace=False).tolist())

    def train(self, model: GlobalModel, clients: Sequence[str], task: str = "train") -> Updates:
        """Send a model and a training task to clients, and wait for their updates.

        Below the quorum, the contract's `server.on_quorum_failure` decides: ask the missing clients again, skip the
        round, or raise `QuorumError`.

        Args:
            model: The global model to train.
            clients: The names of the clients.
            task: The contract's task, which returns weights or a delta. Default: "train".

        Returns:
            The clients' updates.

        Raises:
            JobError: The contract has no such task, it returns metrics, or there are no clients.
            QuorumError: Too few clients answered.
        """
        contract = self.job.contract
        if self._task_returns(task) == "metrics":
            raise JobError(f"tasks.{task}: it returns metrics, expected weights or delta")
        self._results.reserve(model.spec)
        aggregator = Aggregator(
            model.spec,
            rule=self._rule,
            average_bytes=contract.server.average_bytes,
            accumulate=contract.server.accumulate,
            base=model if self._task_returns(task) == "delta" else None,
            reference=model,
            max_abs=contract.bounds.max_abs,
            wire_format=WireFormat.compressed(model.spec, contract.wire.upload),
            storage=self._storage,
        )
        self._record.sampled = tuple(clients)
        request = TaskRequest(task, self._messages(task, clients), aggregator, self._record)
        with _timed(self._record, task):
            self._task_runner.run_until_quorum(request, model)
        self._record.train = average_metrics(request.answers)
        return Updates(self._task_runner, model, request, aggregator, self._record)

    def validate(self, model: GlobalModel, clients: Sequence[str], task: str = "validate") -> dict[str, float]:
        """Have clients evaluate a model.

        Args:
            model: The global model to evaluate.
            clients: The names of the clients.
            task: The contract's task. Default: "validate".

        Returns:
            The clients' metrics, averaged by weight. Empty if none answered, or if the contract has no such task.

        Raises:
            JobError: There are no clients.
        """
        if task not in self.job.contract.tasks:
            return {}
        request = TaskRequest(task, self._messages(task, clients), None, self._record)
        with _timed(self._record, task):
            self._task_runner.run_task(request, model)
        self._record.validate = average_metrics(request.answers)
        return self._record.validate

    def keep(self, model: GlobalModel, metrics: dict[str, float]) -> None:
        """Save a model as the last one, and as the best one if its metrics are the best so far.

        Args:
            model: The model to save.
            metrics: Its metrics, by name; may be empty.
        """
        with _timed(self._record, "keep"):
            self._record.is_best = self._results.keep(model, metrics, self._record.round)

    def model_of(self, arrays: Arrays) -> GlobalModel:
        """Convert a workflow's own arrays to a global model.

        Args:
            arrays: Arrays by name: the tensors of the initial model, in the same order.

        Returns:
            A copy of the arrays, as a model.

        Raises:
            TensorMismatch: A tensor's name, shape or dtype differs from the initial model's.
            SpecError: The tensors are in another order.
        """
        spec = ModelSpec.of(arrays)
        self._spec.require_match(spec)
        if spec != self._spec:
            raise SpecError("the arrays are not in the order of the initial model's tensors")
        return self._storage.copy_model(NamedArrays(spec, arrays))

    def _messages(self, task: str, clients: Sequence[str]) -> dict[str, TaskMessage]:
        contract = self.job.contract
        if not clients:
            raise JobError(f"tasks.{task}: there are no clients to ask")
        message = TaskMessage(
            task=task,
            round=self._record.round,
            rounds=contract.server.rounds,
            seed=0,
            hyperparameters=contract.hyperparameters(task, self._record.round),
        )
        return {
            client: message.model_copy(update={"seed": derive_seed(contract.seed, self._record.round, client)})
            for client in clients
        }

    def _task_returns(self, task: str) -> str:
        if task not in self.job.contract.tasks:
            raise JobError(f"the contract has no task {task!r}; it has {', '.join(self.job.contract.tasks)}")
        return self.job.contract.tasks[task].returns


def derive_seed(seed: int, round_index: int, client: str) -> int:
    """Return the seed of one client in one round: 32 bits of a SHA-256 of the arguments."""
    digest = hashlib.sha256(f"{seed}/{round_index}/{client}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def _timed(record: RoundRecord, phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[phase] = record.seconds.get(phase, 0.0) + time.perf_counter() - started
