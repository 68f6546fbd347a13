"""Runs a task at some clients: one attempt, and further ones for missing clients until the quorum is reached."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.staging import SPILL_AFTER_S, Staging
from flcore.errors import QuorumError
from flcore.job.contract import ServerContract
from flcore.job.messages import TaskContent
from flcore.model.chunks import GlobalModel
from flcore.server.events import Observer, RoundSkipped, TaskRetried, WaitingForClients
from flcore.server.federation import Federation
from flcore.server.history import Participation, RoundRecord
from flcore.server.open_attempt import OpenAttempt, quorum_error
from flcore.server.task_attempt import AttemptPolicy

MAX_REPEATED_FAILURES = 3
"""A client that failed by its own fault this many times in a row, for one reason, is not retried in the same task."""

SETTLE_TIME_S = 0.2
"""The first clients must stay connected for this time before the first round begins."""

MAX_RETRY_DELAY_S = 30.0
"""The delay before a retry doubles from 1 s up to this."""


@dataclass(eq=False)
class TaskRequest:
    """One task of one round, over all attempts at it.

    Every attempt sends the same contents, seeds included, and its updates go to the same aggregator.

    Attributes:
        task: The name of the task.
        contents: The content of each client's assignment, by client.
        aggregator: The destination of the updates. None for a task that returns metrics.
        record: The record of the round.
        answers: The answers so far, by client.
        failed: The last reason of each client without an answer.
        repeated_failures: How many times in a row a client has failed by its own fault, for one reason.
        skip_reason: The reason why the round is skipped, else empty.
    """

    task: str
    contents: Mapping[str, TaskContent]
    aggregator: Aggregator | None
    record: RoundRecord
    answers: dict[str, Participation] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    repeated_failures: dict[str, int] = field(default_factory=dict)
    skip_reason: str = ""

    @property
    def missing(self) -> list[str]:
        """The clients to retry: those without an answer, except those that fail for the same reason every time."""
        hopeless = {client for client, times in self.repeated_failures.items() if times >= MAX_REPEATED_FAILURES}
        return [client for client in self.contents if client not in self.answers and client not in hopeless]

    def record_attempt(self, closed: OpenAttempt) -> None:
        """Record the result of a closed attempt."""
        attempt, record = closed.attempt, self.record
        self.answers |= closed.answers
        for client, reason in attempt.failed.items():
            is_repeated = client in attempt.at_fault and self.failed.get(client) == reason
            self.repeated_failures[client] = self.repeated_failures.get(client, 1) + 1 if is_repeated else 1
        failed = self.failed | attempt.failed
        self.failed = {client: reason for client, reason in failed.items() if client not in self.answers}
        record.bytes_sent += attempt.bytes_sent
        record.bytes_received += attempt.bytes_received
        for client, upload in attempt.answers.items():
            if upload.invalid_metrics:
                record.odd_metrics[client] = upload.invalid_metrics
        self._update_record()

    def record_lost_updates(self, lost: Mapping[str, str]) -> None:
        """Record committed updates that cannot be read back from disk. `lost` has the reason of each, by client."""
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
    """Runs attempts as the contract says. All methods are called by the controller's thread."""

    def __init__(self, federation: Federation, server: ServerContract, staging: Staging, observe: Observer) -> None:
        self._federation, self._state = federation, federation.state
        self._server, self._staging, self._observe = server, staging, observe

    def run_task(self, request: TaskRequest, model: GlobalModel, clients: Sequence[str] | None = None) -> None:
        """Run one attempt and record its result.

        Args:
            request: The task.
            model: The model that the clients download.
            clients: The clients. Default: None, all missing ones.
        """
        server, answer_count = self._server, len(request.answers)
        policy = AttemptPolicy(
            server.deadline_s,
            # Answers of earlier attempts count towards `close_at`.
            None if server.close_at is None else max(1, server.close_at - answer_count),
            stall_timeout_s=server.stall_timeout_s,
            spill_after_s=SPILL_AFTER_S,
        )
        contents = {client: request.contents[client] for client in clients or request.missing}
        open_attempt = self._federation.open_attempt(contents, model, policy, request.aggregator)
        self._state.wait_until_closed(open_attempt, self._staging)
        request.record_attempt(open_attempt)

    def run_until_quorum(self, request: TaskRequest, model: GlobalModel) -> None:
        """Run attempts until the quorum is reached or no retry is left.

        Below the quorum, the round is skipped (`request.skip_reason`) or `QuorumError` is raised, as
        `server.on_quorum_failure` says.
        """
        server = self._server
        retries = server.quorum_retries if server.on_quorum_failure == "retry" else 0
        self.run_task(request, model)
        for retry in range(1, retries + 1):
            if self._has_quorum(request) or len(request.answers) + len(request.missing) < server.quorum:
                break
            self._wait_before_retry(request, retry, retries)
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
        """Retry the clients whose committed updates were lost on disk.

        A client that has its answer cached sends it again without training.

        Args:
            request: The task.
            model: The model that the clients download.
            lost: The reason of each lost update, by client.
            excluding: Clients that are not retried.
        """
        request.record_lost_updates(lost)
        clients = [client for client in lost if client not in excluding]
        if clients:
            self.run_task(request, model, clients)

    def require_quorum(self, request: TaskRequest) -> None:
        """Raise `QuorumError` unless the answers reach the quorum."""
        if not self._has_quorum(request):
            raise quorum_error(request.task, self._server.quorum, list(request.contents), request.failed)

    def await_quorum(self, quorum: int) -> list[str]:
        """Return the names of the connected clients, sorted, once there are `quorum`; or raise `QuorumError`.

        The longest wait is one deadline, and another one for each of `quorum_retries` unless the contract says "fail".
        """
        server = self._server
        retries = 0 if server.on_quorum_failure == "fail" else server.quorum_retries
        return self.await_clients(quorum, (retries + 1) * server.deadline_s)

    def await_start(self, count: int) -> None:
        """Wait without a limit until `count` clients are connected, and stay connected for a moment."""
        while True:
            connected = self.await_clients(count, timeout_s=None)
            self._state.sleep(SETTLE_TIME_S)
            if len(self._state.connected_clients(connected)) >= count:
                return

    def await_clients(self, count: int, timeout_s: float | None, among: Sequence[str] | None = None) -> list[str]:
        """Return the names of the connected clients, sorted, once there are `count`; or raise `QuorumError`.

        Reports a `WaitingForClients` event if it has to wait.
        """
        expected = self._federation.invited_clients if among is None else among
        connected = self._state.connected_clients(among)
        if len(connected) < count:
            missing = tuple(client for client in expected if client not in connected)
            self._observe(WaitingForClients(len(connected), count, missing, timeout_s))
        return self._state.wait_for_clients(count, timeout_s, among)

    def _has_quorum(self, request: TaskRequest) -> bool:
        return len(request.answers) >= self._server.quorum

    def _wait_before_retry(self, request: TaskRequest, retry: int, retries: int) -> None:
        delay_s = min(MAX_RETRY_DELAY_S, 2.0 ** (retry - 1))
        request.record.asked_again += 1
        self._observe(
            TaskRetried(
                request.task,
                request.record.round,
                len(request.answers),
                self._server.quorum,
                tuple(request.missing),
                retry,
                retries,
                delay_s,
            )
        )
        self._state.sleep(delay_s)

    def _try_await(self, count: int, among: Sequence[str]) -> bool:
        """Wait for a deadline's time until `count` of some clients are connected. Returns whether they are."""
        try:
            self.await_clients(count, self._server.deadline_s, among)
        except QuorumError:
            if self._state.has_stopped_waiting:
                raise
            return False
        return True
