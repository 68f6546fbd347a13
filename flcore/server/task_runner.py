"""Asking clients for a task until enough have answered: once, or again for those that are missing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.staging import Staging
from flcore.errors import QuorumError
from flcore.job.contract import ServerContract
from flcore.job.messages import TaskContent
from flcore.model.chunks import GlobalModel
from flcore.server.events import Observer, RoundSkipped, TaskRetried, WaitingForClients
from flcore.server.federation import Federation
from flcore.server.history import Participation, RoundRecord
from flcore.server.open_attempt import OpenAttempt, quorum_error
from flcore.server.task_attempt import AttemptPolicy

SPILL_AFTER_S = 2.0
"""How long an idle update keeps its memory, and how long one waits for memory while none is released."""

MAX_REPEATED_FAILURES = 3
"""After so many failures in a row for one reason of its own, a client is not asked again for the same task."""

SETTLE_TIME_S = 0.2
"""How long the first clients must have been connected before the first round."""

MAX_RETRY_DELAY_S = 30.0
"""Pauses before a task is asked again double from a second up to this."""


@dataclass(eq=False)
class TaskRequest:
    """One task asked of some clients, perhaps more than once: their answers, and why the others have none.

    Every attempt sends the same messages, seeds included, and its updates go to the same aggregator.
    """

    task: str
    messages: Mapping[str, TaskContent]
    aggregator: Aggregator | None
    record: RoundRecord
    answers: dict[str, Participation] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    repeated_failures: dict[str, int] = field(default_factory=dict)
    skip_reason: str = ""

    @property
    def missing(self) -> list[str]:
        """The clients that have not answered, and may still: not those that fail for the same reason every time."""
        hopeless = {client for client, times in self.repeated_failures.items() if times >= MAX_REPEATED_FAILURES}
        return [client for client in self.messages if client not in self.answers and client not in hopeless]

    def record_attempt(self, closed: OpenAttempt) -> None:
        """Record the result of one attempt."""
        attempt, record = closed.attempt, self.record
        self.answers |= closed.answers
        for client, why in attempt.failed.items():
            is_repeated = client in attempt.at_fault and self.failed.get(client) == why
            self.repeated_failures[client] = self.repeated_failures.get(client, 1) + 1 if is_repeated else 1
        self.failed = {
            client: why for client, why in (self.failed | attempt.failed).items() if client not in self.answers
        }
        record.bytes_sent += attempt.bytes_sent
        record.bytes_received += attempt.bytes_received
        for client, answer in attempt.answers.items():
            if answer.invalid_metrics:
                record.odd_metrics[client] = answer.invalid_metrics
        self._update_record()

    def mark_lost(self, lost: Mapping[str, str]) -> None:
        """Record updates as lost that were committed and cannot be read back."""
        self.failed |= lost
        for client in lost:
            self.answers.pop(client, None)
            self.record.updates.pop(client, None)
        self._update_record()

    def _update_record(self) -> None:
        if self.aggregator is not None:
            self.record.updates |= self.answers
        self.record.failed.pop(self.task, None)
        if self.failed:
            self.record.failed[self.task] = dict(self.failed)


class TaskRunner:
    """Asks by the contract's rules, and sees that what is too little is asked for again."""

    def __init__(self, federation: Federation, server: ServerContract, staging: Staging, observe: Observer) -> None:
        self._federation, self._state = federation, federation.state
        self._server, self._staging, self._observe = server, staging, observe

    def run_task(self, request: TaskRequest, model: GlobalModel, clients: Sequence[str] | None = None) -> None:
        """Ask those that are missing, or these of them, and return when the round has closed."""
        server, answer_count = self._server, len(request.answers)
        policy = AttemptPolicy(
            server.deadline_s,
            None if server.close_at is None else max(1, server.close_at - answer_count),
            stall_timeout_s=server.stall_timeout_s,
            spill_after_s=SPILL_AFTER_S,
        )
        messages = {client: request.messages[client] for client in clients or request.missing}
        open_attempt = self._federation.open_attempt(messages, model, policy, request.aggregator)
        self._state.wait_until_closed(open_attempt, self._staging)
        request.record_attempt(open_attempt)

    def run_until_quorum(self, request: TaskRequest, model: GlobalModel) -> None:
        """Ask until the quorum is reached; otherwise skip the round or raise `QuorumError`, as the contract says."""
        server = self._server
        attempts = server.quorum_retries if server.on_quorum_failure == "retry" else 0
        self.run_task(request, model)
        for attempt in range(1, attempts + 1):
            if self._has_quorum(request) or len(request.answers) + len(request.missing) < server.quorum:
                break
            self._wait_before_retry(request, attempt, attempts)
            if self._try_await(server.quorum - len(request.answers), request.missing):
                self.run_task(request, model)
        try:
            self.require_quorum(request)
        except QuorumError as error:
            if server.on_quorum_failure != "skip":
                raise
            request.skip_reason = request.record.skipped = error.summary
            self._observe(RoundSkipped(request.task, request.record.round, error.summary))

    def retry_lost(
        self, request: TaskRequest, model: GlobalModel, lost: Mapping[str, str], excluding: Collection[str]
    ) -> None:
        """Ask those whose updates the disk has lost once more, but for some; who holds its answer sends it again."""
        request.mark_lost(lost)
        clients = [client for client in lost if client not in excluding]
        if clients:
            self.run_task(request, model, clients)

    def require_quorum(self, request: TaskRequest) -> None:
        """Raise `QuorumError` unless enough updates are left."""
        if not self._has_quorum(request):
            raise quorum_error(request.task, self._server.quorum, list(request.messages), request.failed)

    def await_quorum(self, quorum: int) -> list[str]:
        """Return the connected clients, sorted, once there are `quorum`; or raise `QuorumError`.

        It waits for as many deadlines as a round may take, asked again included.
        """
        server = self._server
        attempts = 0 if server.on_quorum_failure == "fail" else server.quorum_retries
        return self.await_clients(quorum, (attempts + 1) * server.deadline_s)

    def await_start(self, count: int) -> None:
        """Wait until so many clients are connected, and stay: clients that come and go at once begin no job."""
        while True:
            present = self.await_clients(count, timeout_s=None)
            self._state.sleep(SETTLE_TIME_S)
            if len(self._state.connected(present)) >= count:
                return

    def await_clients(self, count: int, timeout_s: float | None, among: Sequence[str] | None = None) -> list[str]:
        """Return the connected clients, sorted, once there are `count`, and say for whom it waits; or `QuorumError`."""
        names = self._federation.client_names if among is None else among
        present = self._state.connected(among)
        if len(present) < count:
            missing = tuple(client for client in names if client not in present)
            self._observe(WaitingForClients(len(present), count, missing, timeout_s))
        return self._state.wait_for_clients(count, timeout_s, among)

    def _has_quorum(self, request: TaskRequest) -> bool:
        return len(request.answers) >= self._server.quorum

    def _wait_before_retry(self, request: TaskRequest, attempt: int, attempts: int) -> None:
        delay_s = min(MAX_RETRY_DELAY_S, 2.0 ** (attempt - 1))
        request.record.asked_again += 1
        self._observe(
            TaskRetried(
                request.task,
                request.record.round,
                len(request.answers),
                self._server.quorum,
                tuple(request.missing),
                attempt,
                attempts,
                delay_s,
            )
        )
        self._state.sleep(delay_s)

    def _try_await(self, count: int, among: Sequence[str]) -> bool:
        """Wait until so many of some clients are connected, as long as a round may take; say whether they are."""
        try:
            self.await_clients(count, self._server.deadline_s, among)
        except QuorumError:
            if self._state.has_stopped_waiting:
                raise
            return False
        return True
