"""The controller: what a playbook can do. A playbook is a function of a `Controller`; see `playbooks`."""

import hashlib
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.plans import require_plan
from flcore.aggregation.storage import Storage
from flcore.errors import JobError, QuorumError, SpecError
from flcore.job.job import Job
from flcore.job.messages import TaskMessage
from flcore.model.chunks import GlobalModel
from flcore.model.form import Form
from flcore.model.model import Arrays, NamedArrays
from flcore.model.spec import ModelSpec
from flcore.server.events import Observer, RoundDone
from flcore.server.exchange import Exchange
from flcore.server.federation import Federation
from flcore.server.history import RoundRecord
from flcore.server.results import Results
from flcore.server.round import RoundRules


class Updates:
    """The clients' answers to one training task.

    `metrics` are their averages by weight, `clients` the names of those whose update is in.
    """

    def __init__(self, exchange: Exchange, record: RoundRecord) -> None:
        self.metrics = exchange.metrics
        self.clients = tuple(sorted(exchange.answers))
        self._exchange, self._record = exchange, record

    def aggregate(self) -> GlobalModel:
        """Return the next global model, by the job's rule. The updates are let go: a second call raises.

        An update that cannot be read back is left out and recorded as lost; `QuorumError` where too few are left then.
        """
        aggregator = self._exchange.aggregator
        if aggregator is None:
            raise JobError(f"tasks.{self._exchange.task}: it returns metrics, and there is nothing to aggregate")
        with _timed(self._record, "aggregate"):
            model = aggregator.finish()
        aggregator.close()  # a playbook that keeps these updates keeps no model alive
        if aggregator.lost:
            self._leave_out(aggregator.lost)
        return model

    def _leave_out(self, lost: Mapping[str, str]) -> None:
        """Record updates as lost that were committed and cannot be read back."""
        task = self._exchange.task
        self._record.failed.setdefault(task, {}).update(lost)
        for client in lost:
            self._record.updates.pop(client, None)
        self.clients = tuple(client for client in self.clients if client not in lost)
        quorum = self._exchange.round.rules.quorum
        if len(self.clients) < quorum:
            reasons = "; ".join(lost.values())
            raise QuorumError(f"task {task!r}: {len(self.clients)} updates are left, quorum {quorum}: {reasons}")


class Controller:
    """The server's side of a running job, as a playbook sees it: `sample`, `train`, `validate`, `keep`.

    A playbook loops over `rounds()`; each round leaves one record in the history. `model_of` turns a playbook's own
    arrays into a model.
    """

    def __init__(
        self,
        job: Job,
        model: GlobalModel,
        federation: Federation,
        results: Results,
        observe: Observer,
        storage: Storage,
    ) -> None:
        self.job, self._storage, self._rule = job, storage, job.rule()
        require_plan(self._rule, storage.plan)
        self._spec = model.spec
        self._initial: GlobalModel | None = model
        self._initial_again = weakref.ref(model)
        self._federation, self._results, self._observe = federation, results, observe
        self._record = RoundRecord(0)

    @property
    def initial_model(self) -> GlobalModel:
        """The first global model. It is not kept: once nobody holds it any more, it is made anew."""
        model = self._initial or self._initial_again()
        self._initial = None
        if model is None:
            model = self._storage.place(self.job.initial_model())
            self._initial_again = weakref.ref(model)
        return model

    def rounds(self) -> Iterator[int]:
        """Yield the number of each round, from 1."""
        for index in range(1, self.job.contract.server.rounds + 1):
            self._record = RoundRecord(index)
            with _timed(self._record, "round"):
                yield index
            self._results.add(self._record)
            self._observe(RoundDone(self._record))

    def sample(self, fraction: float | None = None) -> list[str]:
        """Return clients for this round, sorted: a share of those connected, drawn from seed and round alone.

        Waits for the quorum to be connected, as long as a round may take; then raises `QuorumError`. At least a quorum
        is drawn.
        """
        server = self.job.contract.server
        connected = self._federation.wait_for(server.quorum, server.deadline_s)
        count = max(server.quorum, round((server.fraction if fraction is None else fraction) * len(connected)))
        draw = np.random.default_rng(seed_of(self.job.contract.seed, self._record.round, "sample"))
        return sorted(draw.choice(connected, min(count, len(connected)), replace=False).tolist())

    def train(self, model: GlobalModel, clients: Sequence[str], task: str = "train") -> Updates:
        """Send clients a model with a task and return their updates; raises `QuorumError` if they are too few."""
        contract = self.job.contract
        server = contract.server
        rules = RoundRules(server.deadline_s, server.quorum, server.close_at)
        if self._task_returns(task) == "metrics":
            raise JobError(f"tasks.{task}: it returns metrics, expected weights or delta")
        aggregator = Aggregator(
            model.spec,
            rule=self._rule,
            average_bytes=server.average_bytes,
            accumulate=server.accumulate,
            base=model if self._task_returns(task) == "delta" else None,
            reference=model,
            max_abs=contract.bounds.max_abs,
            form=Form.narrowed(model.spec, contract.wire.upload),
            storage=self._storage,
        )
        self._record.sampled = tuple(clients)
        exchange = self._ask(task, model, clients, rules, aggregator)
        self._record.updates |= exchange.answers
        self._record.train = exchange.metrics
        updates = Updates(exchange, self._record)
        # Whoever lets them go, aggregated or not, lets go of the room that they take.
        weakref.finalize(updates, aggregator.discard).atexit = False
        exchange.require_quorum()
        return updates

    def validate(self, model: GlobalModel, clients: Sequence[str], task: str = "validate") -> dict[str, float]:
        """Have the clients evaluate a model; return their metrics, averaged by weight ({} where none answered).

        A job without such a task is not validated.
        """
        if task not in self.job.contract.tasks:
            return {}
        rules = RoundRules(self.job.contract.server.deadline_s, quorum=0)
        self._record.validate = self._ask(task, model, clients, rules, None).metrics
        return self._record.validate

    def keep(self, model: GlobalModel, metrics: dict[str, float]) -> None:
        """Keep a model as the last one, and as the best one if its metrics are the best so far."""
        with _timed(self._record, "keep"):
            self._record.is_best = self._results.keep(model, metrics)

    def model_of(self, arrays: Arrays) -> GlobalModel:
        """Return a playbook's own arrays as a global model; they must have the tensors of the initial model."""
        spec = ModelSpec.of(arrays)
        self._spec.require(spec)
        if spec != self._spec:
            raise SpecError("the arrays are not in the order of the initial model's tensors")
        return self._storage.place(NamedArrays(spec, arrays))

    def _ask(
        self, task: str, model: GlobalModel, clients: Sequence[str], rules: RoundRules, aggregator: Aggregator | None
    ) -> Exchange:
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
        messages = {
            client: message.model_copy(update={"seed": seed_of(contract.seed, self._record.round, client)})
            for client in clients
        }
        with _timed(self._record, task):
            exchange = self._federation.ask(messages, model, rules, aggregator)
        self._record.bytes_sent += exchange.traffic.sent
        self._record.bytes_received += exchange.traffic.received
        if exchange.round.failed:
            self._record.failed[task] = dict(exchange.round.failed)
        return exchange

    def _task_returns(self, task: str) -> str:
        if task not in self.job.contract.tasks:
            raise JobError(f"the contract has no task {task!r}; it has {', '.join(self.job.contract.tasks)}")
        return self.job.contract.tasks[task].returns


def seed_of(seed: int, round_index: int, client: str) -> int:
    """Return the seed of one client in one round: 32 bits of a SHA-256, a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}/{round_index}/{client}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def _timed(record: RoundRecord, phase: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[phase] = record.seconds.get(phase, 0.0) + time.perf_counter() - started
