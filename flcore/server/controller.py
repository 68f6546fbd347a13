"""The controller: the interface for workflows. A workflow is a function of a `Controller` (`flcore/workflows`)."""

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
from flcore.job.messages import TaskContent
from flcore.model.chunks import GlobalModel
from flcore.model.model import Arrays, NamedArrays
from flcore.model.spec import ModelSpec
from flcore.model.wire_format import WireFormat
from flcore.server.events import Observer, RoundFinished
from flcore.server.history import RoundRecord
from flcore.server.open_attempt import average_metrics
from flcore.server.results import Results
from flcore.server.task_runner import TaskRequest, TaskRunner

SAMPLER_LABEL = "/sample"
"""Stands for the sampler where a client's name stands for the client. No client's name has a slash."""


class Updates:
    """The clients' updates of one training task. Made by `Controller.train`.

    Attributes:
        is_skipped: Whether the round is skipped: the updates are below the quorum, and the contract says
            `on_quorum_failure = "skip"`.
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
        # A workflow may drop the updates without aggregating them: the last reference frees their memory and files. Not
        # at exit, when memory is freed anyway and the run's directory may be gone.
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

        An update that cannot be read back from disk is lost. Its client is retried once. If that fails, the update is
        left out and its client recorded as failed.

        Returns:
            The next global model. If the round is skipped, the model that was sent.

        Raises:
            JobError: The updates were aggregated before.
            QuorumError: Too few updates are left.
        """
        model, self._model = self._model, None
        if model is None:
            raise JobError(f"tasks.{self._request.task}: its updates were aggregated before; aggregate them once")
        if self.is_skipped:
            self._aggregator.discard()
            return model
        with _timed(self._record, "aggregate"):
            result = self._combine(model)
        self._record.capped_weights = dict(self._aggregator.capped_weights)
        # The aggregator refers to the base model. A workflow that keeps these updates must not keep that model alive.
        self._aggregator.close()
        return result

    def _combine(self, model: GlobalModel) -> GlobalModel:
        """Combine the updates. Clients of lost updates are retried, once each. Updates lost again are left out."""
        retried: set[str] = set()
        while True:
            try:
                result = self._aggregator.finish(exclude_lost=False)
            except UpdatesLost as error:
                self._task_runner.retry_lost(self._request, model, error.lost, excluding=retried)
                retried |= error.lost.keys()
            else:
                if retried:
                    self._task_runner.require_quorum(self._request)
                return result


class Controller:
    """The server's side of a running job, for workflows: `sample`, `train`, `validate`, `publish`.

    A workflow loops over `rounds()`. Each round adds one record to the history.

    Example:
        A workflow::

            def federated_averaging(control):
                model = control.initial_model
                for _ in control.rounds():
                    clients = control.sample()
                    model = control.train(model, clients).aggregate()
                    control.publish(model, control.validate(model, clients))
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
        self.job, self._storage, self._rule = job, storage, job.load_rule()
        require_plan(self._rule, storage.plan, job.contract.bounds.max_share)
        self._spec = model.spec
        # The strong reference is dropped when the workflow takes the model, so that the model is freed after its round.
        self._initial: GlobalModel | None = model
        self._initial_ref = weakref.ref(model)
        self._task_runner, self._results, self._observe = task_runner, results, observe
        self._record = RoundRecord(0)

    @property
    def initial_model(self) -> GlobalModel:
        """The first global model. The controller keeps a weak reference, and loads the model again if it was freed."""
        model = self._initial or self._initial_ref()
        self._initial = None
        if model is None:
            model = self._storage.copy_model(self.job.initial_model())
            self._initial_ref = weakref.ref(model)
        return model

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round, from 1. The round's record is written when the next one is asked for."""
        for number in range(1, self.job.contract.server.rounds + 1):
            self._record = RoundRecord(number)
            with _timed(self._record, "round"):
                yield number
            self._results.add(self._record)
            self._observe(RoundFinished(self._record))

    def sample(self, fraction: float | None = None) -> list[str]:
        """Draw clients for this round from the connected ones. The draw follows from the job's seed and the round.

        Waits until a quorum is connected: one deadline, and another one for each of `server.quorum_retries` unless
        `server.on_quorum_failure` is "fail".

        Args:
            fraction: The fraction of connected clients to draw, from 0 to 1; at least the quorum is drawn. Default:
                None, the contract's `server.fraction`.

        Returns:
            The clients' names, sorted.

        Raises:
            QuorumError: The quorum was not connected in time.
        """
        server = self.job.contract.server
        connected = self._task_runner.await_quorum(server.quorum)
        count = max(server.quorum, round((server.fraction if fraction is None else fraction) * len(connected)))
        draw = np.random.default_rng(derive_seed(self.job.contract.seed, self._record.round, SAMPLER_LABEL))
        return sorted(draw.choice(connected, min(count, len(connected)), replace=False).tolist())

    def train(self, model: GlobalModel, clients: Sequence[str], task: str = "train") -> Updates:
        """Send a model and a training task to clients, and wait for their updates.

        Below the quorum, the contract's `server.on_quorum_failure` decides: retry the missing clients, skip the round,
        or raise `QuorumError`.

        Args:
            model: The global model to train.
            clients: The names of the clients.
            task: The contract's task, which returns weights or a delta. Default: "train".

        Returns:
            The clients' updates.

        Raises:
            JobError: The contract has no such task, it returns metrics, or there are no clients.
            QuorumError: Too few clients answered.
            OSError: The disk has too little space for the next model.
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
            max_share=contract.bounds.max_share,
            wire_format=WireFormat.compressed(model.spec, contract.wire.upload),
            storage=self._storage,
        )
        self._record.sampled = tuple(clients)
        request = TaskRequest(task, self._contents(task, clients), aggregator, self._record)
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
        request = TaskRequest(task, self._contents(task, clients), None, self._record)
        with _timed(self._record, task):
            self._task_runner.run_task(request, model)
        self._record.validate = average_metrics(request.answers)
        return self._record.validate

    def publish(self, model: GlobalModel, metrics: dict[str, float]) -> None:
        """Make a model the run's last one, and its best one if its metrics are the best so far.

        With an output directory, `model.safetensors` and `best.safetensors` are replaced, and with
        `server.checkpoint_every` the model of such a round is kept in a file of its own. A later call in the same round
        replaces the model of an earlier one.

        Args:
            model: The model to publish.
            metrics: Its metrics, by name; may be empty.
        """
        with _timed(self._record, "keep"):  # the phase's name in history.jsonl
            published = self._results.publish(model, metrics, self._record.round)
        self._record.is_best, self._record.checkpoint = published

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

    def _contents(self, task: str, clients: Sequence[str]) -> dict[str, TaskContent]:
        contract = self.job.contract
        if not clients:
            raise JobError(f"tasks.{task}: there are no clients to ask")
        content = TaskContent(
            task=task,
            round=self._record.round,
            rounds=contract.server.rounds,
            seed=0,
            hyperparameters=contract.hyperparameters(task, self._record.round),
        )
        return {
            client: content.model_copy(update={"seed": derive_seed(contract.seed, self._record.round, client)})
            for client in clients
        }

    def _task_returns(self, task: str) -> str:
        if task not in self.job.contract.tasks:
            raise JobError(f"the contract has no task {task!r}; it has {', '.join(self.job.contract.tasks)}")
        return self.job.contract.tasks[task].returns


def derive_seed(seed: int, round_number: int, label: str) -> int:
    """Return the seed of a client or of the sampler in one round: 32 bits of a SHA-256 of the arguments.

    >>> derive_seed(0, 1, "client-1"), derive_seed(0, 1, SAMPLER_LABEL)
    (3179767677, 1426402723)
    """
    digest = hashlib.sha256(f"{seed}/{round_number}/{label}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def _timed(record: RoundRecord, phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[phase] = record.seconds.get(phase, 0.0) + time.perf_counter() - started
