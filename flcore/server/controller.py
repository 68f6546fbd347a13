"""The controller: the interface for workflows. A workflow is a function of a `Controller` (`flcore/workflows`)."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flcore.aggregation.storage import Storage
from flcore.errors import JobError, SpecError
from flcore.job.job import Job
from flcore.model.chunks import GlobalModel
from flcore.model.model import Arrays, NamedArrays
from flcore.model.spec import ModelSpec
from flcore.server.call_log import Call
from flcore.server.early_stopping import EarlyStopping
from flcore.server.evaluation import Evaluation, ask_for_metrics, average_of, evaluations_of
from flcore.server.events import Observer, RoundFinished, StoppedEarly
from flcore.server.history import RoundRecord
from flcore.server.past_model import PastModel
from flcore.server.recorded_run import RecordedRun
from flcore.server.results import Publication, Results
from flcore.server.results_file import digest_of_results, encode_results
from flcore.server.task_contents import draw_clients, task_contents, task_returns
from flcore.server.task_runner import TaskRequest, TaskRunner
from flcore.server.training import Training
from flcore.server.updates import PastUpdates, Updates, timed
from flcore.server.workflow_values import WorkflowValues, encode_values, replace_values


class Controller:
    """The server's side of a running job, for workflows: `sample`, `train`, `validate`, `evaluate`, `publish`.

    A workflow loops over `rounds()`. Each round adds one record to the history.

    After a restart the workflow runs again from its start. Calls that were over have their recorded results, the one
    that was under way goes on, and further ones are new (see `CallLog`).

    Attributes:
        job: The job.
        state: Small values of the workflow by name: JSON values, NumPy arrays and NumPy scalars. They are stored at the
            end of each round, for `remaining_rounds`, and replaced by copies, as after a restart.

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
        run: RecordedRun,
    ) -> None:
        self.job, self._storage, self._spec = job, storage, model.spec
        # The strong reference is dropped when the workflow takes the model, so that the model is freed after its round.
        self._initial: GlobalModel | None = model
        self._initial_ref = weakref.ref(model)
        self._task_runner, self._results, self._observe = task_runner, results, observe
        self._record = RoundRecord(0)
        self.state: WorkflowValues = {}
        self._calls = run.calls
        self._training = Training(job, task_runner, results, storage, run)
        server = job.contract.server
        self._stopping = EarlyStopping(server.best, server.target, server.patience)
        self._has_looped = self._has_stopped = False

    @property
    def initial_model(self) -> GlobalModel:
        """The first global model. The controller keeps a weak reference, and loads the model again if it was freed."""
        model = self._initial or self._initial_ref()
        self._initial = None
        if model is None:
            model = self._storage.copy_model(self.job.initial_model())
            self._initial_ref = weakref.ref(model)
        return model

    @property
    def last_model(self) -> GlobalModel:
        """The model that was published last; the initial one if none was.

        After a restart it is the one of this place of the workflow; until a loop begins, of the rounds that were over.
        """
        results = self._results
        model = results.restored if results.model is None else results.model
        return self.initial_model if model is None else model

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round, from 1. The round's record is written when the next one is asked for.

        The rounds end early at `server.target`, or after `server.patience` rounds without an improvement.

        After a restart, the rounds that were over are yielded again. Their calls have their recorded results, and their
        models are handles: of these, the last published one and the checkpoints can be read.
        """
        self._begin_loop(are_left_out=False)
        for number in range(1, self.job.contract.server.rounds + 1):
            yield from self._run_round(number, is_past=number <= self._calls.past_rounds)
            if self._has_stopped:
                return

    def remaining_rounds(self) -> Iterator[int]:
        """Yield the number of each round that is not over, for a workflow that has a state of its own.

        After a restart, `state` has the values that it had at the end of the last round that was over, and `last_model`
        is the model that was published then. Calls before the loop have their recorded results.

        Example:
            A workflow with momentum at the server::

                def with_momentum(control):
                    for _ in control.remaining_rounds():
                        model = control.last_model
                        mean = control.train(model, control.sample()).aggregate()
                        control.publish(step(model, mean, control.state), {})
        """
        self._begin_loop(are_left_out=True)
        values = self._calls.skip_past_rounds()
        self._training.releasable |= self._calls.skipped_trainings
        if self._calls.past_rounds:
            replace_values(self.state, values)
            self._record = self._calls.records()[-1]
        published = self._calls.published_metrics()
        for number in range(1, self._calls.past_rounds + 1):
            self._stopping.add(published.get(number, {}))
            self._has_stopped = bool(self._stopping.end_round())
        for number in range(self._calls.past_rounds + 1, self.job.contract.server.rounds + 1):
            if self._has_stopped:
                return
            yield from self._run_round(number, is_past=False)

    def _begin_loop(self, *, are_left_out: bool) -> None:
        if self._has_looped:
            raise JobError("the workflow loops over its rounds twice: each round is run, and recorded, once")
        self._has_looped = True
        self._results.begin_rounds(are_left_out=are_left_out)

    def _run_round(self, number: int, *, is_past: bool) -> Iterator[int]:
        self._record = RoundRecord(number)
        with timed(self._record, "round"):
            yield number
        reason = self._stopping.end_round()
        self._has_stopped = bool(reason)
        values = encode_values(self.state)
        replace_values(self.state, values)  # as after a restart
        released = self._training.end_round()
        # A round that was over is not if one of its calls had to be made again.
        if is_past and number <= self._calls.past_rounds:
            self._results.end_round(is_past=True)
            return
        self._record.stopped = reason if number < self.job.contract.server.rounds else ""
        self._calls.end_round(self._record, values, released)
        self._results.add(self._record)
        # The record says that they are gone. What a kill leaves of them here goes at the next start.
        self._results.end_round()
        self._training.remove_updates(released)
        self._observe(RoundFinished(self._record))
        if self._record.stopped:
            self._observe(StoppedEarly(number, self._record.stopped))

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
        call = self._begin("sample", {"fraction": fraction})
        if call.result is not None:
            self._restore_record(call)
            return list(call.result["clients"])
        with call.noting_failure():
            if self._calls.last_connected:
                self._task_runner.await_return(self._calls.last_connected)
            connected = self._task_runner.await_quorum(self.job.contract.server.quorum)
        drawn = draw_clients(self.job.contract, self._record.round, connected, fraction)
        call.end({"clients": drawn, "connected": connected}, self._record)
        return drawn

    def train(
        self, model: GlobalModel, clients: Sequence[str], task: str = "train", quorum: int | None = None
    ) -> Updates:
        """Send a model and a training task to clients, and wait for their updates.

        Below the quorum, the contract's `server.on_quorum_failure` decides: retry the missing clients, skip the round,
        or raise `QuorumError`.

        Args:
            model: The global model to train.
            clients: The names of the clients.
            task: The contract's task, which returns weights or a delta. Default: "train".
            quorum: The smallest number of updates. With 0 the clients are asked once, and there may be no update: then
                `clients` of the updates is empty, and they cannot be aggregated. Default: None, `server.quorum`.

        Returns:
            The clients' updates.

        Raises:
            JobError: The contract has no such task, it returns metrics, or there are no clients.
            QuorumError: Too few clients answered.
            OSError: The disk has too little space for the next model.
        """
        contract = self.job.contract
        if task_returns(contract, task) == "metrics":
            raise JobError(f"tasks.{task}: it returns metrics, expected weights or delta")
        own_quorum = {} if quorum is None else {"quorum": quorum}
        call = self._begin("train", {"task": task, "clients": list(clients)} | own_quorum)
        if call.result is not None and call.number in self._calls.released:
            self._restore_record(call)
            return PastUpdates(model, self._record.round, call.result)
        _require_readable(model)
        self._results.reserve(model.spec)
        sampled = self._record.sampled
        self._record.sampled += tuple(client for client in clients if client not in sampled)
        contents = task_contents(contract, self._record.round, task, clients)
        quorum = contract.server.quorum if quorum is None else quorum
        request = TaskRequest(task, contents, None, self._record, call, quorum)
        return self._training.run(request, model)

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
        call = self._begin("validate", {"task": task, "clients": list(clients)})
        if call.result is not None:
            self._restore_record(call)
            return dict(call.result["metrics"])
        self._record.validate = average_of(self._ask(call, model, clients, task))
        call.end({"metrics": self._record.validate}, self._record)
        return self._record.validate

    def evaluate(self, model: GlobalModel, clients: Sequence[str], task: str = "validate") -> dict[str, Evaluation]:
        """Have clients evaluate a model, and keep their metrics apart. The history has the average.

        Args:
            model: The model to evaluate.
            clients: The names of the clients.
            task: The contract's task, which returns metrics. Default: "validate".

        Returns:
            The evaluation of each client that answered, by client.

        Raises:
            JobError: The contract has no such task, it does not return metrics, or there are no clients.
        """
        return self._evaluate("evaluate", model, clients, task)

    def collect(self, clients: Sequence[str], task: str) -> dict[str, Evaluation]:
        """Have clients run a task that returns metrics and needs no model. The history has no metrics of it.

        Args:
            clients: The names of the clients.
            task: The contract's task, which returns metrics. It is sent the initial model.

        Returns:
            The answer of each client that answered, by client.

        Raises:
            JobError: The contract has no such task, it does not return metrics, or there are no clients.
        """
        return self._evaluate("collect", None, clients, task)

    def _evaluate(
        self, kind: str, model: GlobalModel | None, clients: Sequence[str], task: str
    ) -> dict[str, Evaluation]:
        if task_returns(self.job.contract, task) != "metrics":
            raise JobError(f'tasks.{task}: expected a task that returns metrics; set returns = "metrics"')
        call = self._begin(kind, {"task": task, "clients": list(clients)})
        if call.result is not None:
            self._restore_record(call)
            return evaluations_of(call.result["evaluations"])
        evaluations = self._ask(call, self.initial_model if model is None else model, clients, task)
        if model is not None:
            self._record.validate = average_of(evaluations)
        call.end({"evaluations": {client: tuple(each) for client, each in evaluations.items()}}, self._record)
        return evaluations

    def _ask(self, call: Call, model: GlobalModel, clients: Sequence[str], task: str) -> dict[str, Evaluation]:
        _require_readable(model)
        contents = task_contents(self.job.contract, self._record.round, task, clients)
        return ask_for_metrics(
            self._task_runner, TaskRequest(task, contents, None, self._record, call, quorum=0), model
        )

    def publish(self, model: GlobalModel, metrics: dict[str, float]) -> None:
        """Make a model the run's last one, and its best one if its metrics are the best so far.

        With an output directory, `model.safetensors` and `best.safetensors` are replaced, and with
        `server.checkpoint_every` the model of such a round is kept in a file of its own. A later call in the same round
        replaces the model of an earlier one.

        Args:
            model: The model to publish.
            metrics: Its metrics, by name; may be empty.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        call = self._begin("publish", {"metrics": metrics})
        self._stopping.add(metrics)
        if call.result is not None:
            self._restore_record(call)
            self._results.replay(model, call, is_replaced=self._calls.is_replaced(call))
            self._training.release(call.result["released"])
            return
        released = sorted(self._training.releasable)

        def decide(publication: Publication) -> None:
            self._record.is_best, self._record.checkpoint = publication.is_best, publication.checkpoint
            call.end(publication._asdict() | {"released": released}, self._record)

        with timed(self._record, "keep"):  # the phase's name in history.jsonl
            stored = model.stored() if isinstance(model, PastModel) else model
            self._results.publish(stored, metrics, self._record.round, call.number, decide)
        self._training.release(released)

    def save_results(self, results: Any) -> None:
        """Write what a workflow found besides models to `results.json` in the output directory, by an atomic replace.

        A later call replaces what an earlier one wrote. After a restart the workflow must save the same values again:
        they follow from what the controller returned, and not from a clock or from chance.

        Args:
            results: JSON values: dicts with text as keys, lists, text, finite numbers, booleans and None.

        Raises:
            JobError: A value is not JSON.
            OSError: The disk does not take the file.
        """
        content = encode_results(results)
        call = self._begin("save_results", {"sha256": digest_of_results(content)})
        if call.result is not None:
            self._restore_record(call)
            return
        self._results.save_results(content)
        call.end({}, self._record)

    def _begin(self, kind: str, arguments: Mapping[str, Any]) -> Call:
        self._task_runner.raise_if_ended()
        call = self._calls.begin(self._record.round, kind, arguments)
        call.raise_recorded()
        return call

    def _restore_record(self, call: Call) -> None:
        """Take the round's record as it was at the end of a recorded call. One of a round that is over has none."""
        if call.record is not None:
            self._record.restore(call.record)

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


def _require_readable(model: GlobalModel) -> None:
    """Raise `ModelGone` here, in the workflow, for a model that clients could not download."""
    if isinstance(model, PastModel):
        model.stored()
