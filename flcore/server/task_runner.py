"""Runs a task at some clients: one attempt, and further ones for missing clients until the quorum is reached."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.kept_staging import KeptStaging
from flcore.aggregation.staging import SPILL_AFTER_S, Staging
from flcore.errors import QuorumError
from flcore.job.contract import ServerContract
from flcore.job.messages import TaskContent
from flcore.model.chunks import GlobalModel
from flcore.server.call_log import Call
from flcore.server.events import (
    ClientFailed,
    Observer,
    RoundSkipped,
    TaskRetried,
    UpdatesFolded,
    WaitBegan,
    WaitEnded,
    WaitingForClients,
)
from flcore.server.federation import Federation
from flcore.server.history import Participation, RoundRecord
from flcore.server.open_attempt import OpenAttempt, average_metrics, quorum_error
from flcore.server.run_state import RecordedAnswer
from flcore.server.task_attempt import DEFAULT_GRACE_S, AttemptPolicy
from flcore.text import without_folders

MAX_REPEATED_FAILURES = 3
"""A client that failed by its own fault this many times in a row, for one reason, is not retried in the same task."""

SETTLE_TIME_S = 0.2
"""The first clients must stay connected for this time before the first round begins."""

RETURN_GRACE_S = 60.0
"""After a restart, the clients of the run have this time to come back before they are missed."""

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
        call: The workflow's call.
        quorum: The smallest number of answers.
        answers: The answers so far, by client.
        failed: The last reason of each client without an answer.
        repeated_failures: How many times in a row a client has failed by its own fault, for one reason.
        skip_reason: The reason why the round is skipped, else empty.
    """

    task: str
    contents: Mapping[str, TaskContent]
    aggregator: Aggregator | None
    record: RoundRecord
    call: Call
    quorum: int
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

    def end(self, *, has_answers: bool) -> None:
        """Record the result of a training task. `has_answers` says whether its answers are on record."""
        self.record.train = average_metrics(self.record.updates)
        result = {
            "is_skipped": bool(self.skip_reason),
            "metrics": average_metrics(self.answers),
            "clients": sorted(self.answers),
            "has_answers": has_answers,
        }
        self.call.end(result, self.record)

    def restore_answers(self, answers: Iterable[RecordedAnswer]) -> None:
        """Take answers that came before the server was restarted."""
        for answer in answers:
            self.answers[answer.client] = answer.participation
            if answer.invalid_metrics:
                self.record.odd_metrics[answer.client] = dict(answer.invalid_metrics)
        self._update_record()

    def record_lost_updates(self, lost: Mapping[str, str]) -> None:
        """Record committed updates that cannot be read back from disk. `lost` has the reason of each, by client."""
        self.failed |= lost
        for client in lost:
            self.call.remove_answer(client)
            self.answers.pop(client, None)
            self.record.updates.pop(client, None)
        self._update_record()

    def _update_record(self) -> None:
        if self.aggregator is not None:
            self.record.updates |= self.answers
        # Another request of the round, for the same task, may have asked other clients.
        others = self.record.failed.pop(self.task, {})
        failed = {client: reason for client, reason in others.items() if client not in self.contents} | self.failed
        if failed:
            # Leads download the history: the server's folders are in its log alone.
            self.record.failed[self.task] = {client: without_folders(reason) for client, reason in failed.items()}


class TaskRunner:
    """Runs attempts as the contract says. All methods are called by the controller's thread.

    Args:
        federation: The clients.
        server: The contract's table `[server]`.
        staging: The staging whose memory the uploads wait for.
        observe: Receives the events of the run.
        grace_until: The time (`time.monotonic`) until which clients of an earlier process may come back. Default: 0.
    """

    def __init__(
        self,
        federation: Federation,
        server: ServerContract,
        staging: Staging | KeptStaging,
        observe: Observer,
        grace_until: float = 0.0,
    ) -> None:
        self._federation, self._state = federation, federation.state
        self._server, self._staging, self._observe = server, staging, observe
        self._grace_until = grace_until

    def raise_if_ended(self) -> None:
        """Raise the error with which the job was ended from outside, such as `JobAborted`."""
        self._state.raise_if_ended()

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
            grace_s=max(DEFAULT_GRACE_S, self._grace_until - time.monotonic()),
            stall_timeout_s=server.stall_timeout_s,
            spill_after_s=SPILL_AFTER_S,
        )
        contents = {client: request.contents[client] for client in clients or request.missing}
        open_attempt = self._federation.open_attempt(contents, model, policy, request.aggregator, request.call)
        with self._waiting():
            self._state.wait_until_closed(open_attempt, self._staging)
        request.record_attempt(open_attempt)

    def run_first(self, request: TaskRequest, model: GlobalModel) -> None:
        """Run the first attempt, unless the answers that came before a restart are all."""
        close_at = self._server.close_at
        if request.missing and (close_at is None or len(request.answers) < close_at):
            self.run_task(request, model)

    def run_until_quorum(self, request: TaskRequest, model: GlobalModel) -> None:
        """Run attempts until the quorum is reached or no retry is left.

        Below the quorum, the round is skipped (`request.skip_reason`) or `QuorumError` is raised, as
        `server.on_quorum_failure` says.
        """
        server = self._server
        retries = server.quorum_retries if server.on_quorum_failure == "retry" else 0
        self.run_first(request, model)
        for retry in range(1, retries + 1):
            if self._has_quorum(request) or len(request.answers) + len(request.missing) < request.quorum:
                break
            self._wait_before_retry(request, retry, retries)
            if self._try_await(request.quorum - len(request.answers), request.missing):
                self.run_task(request, model)
        try:
            self.require_quorum(request)
        except QuorumError as error:
            if server.on_quorum_failure != "skip":
                raise
            request.skip_reason = request.record.skipped = error.summary
            self.report_skipped(request)

    def report_skipped(self, request: TaskRequest) -> None:
        """Tell that a round leaves the model as it was, as its record says."""
        self._observe(RoundSkipped(request.task, request.record.round, request.record.skipped))

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
        self.record_lost(request, lost)
        clients = [client for client in lost if client not in excluding]
        if clients:
            self.run_task(request, model, clients)

    def record_lost(self, request: TaskRequest, lost: Mapping[str, str]) -> None:
        """Record and report committed updates that the disk has lost. `lost` has the reason of each, by client."""
        request.record_lost_updates(lost)
        for client, reason in lost.items():
            self._observe(ClientFailed(request.task, client, reason, request.record.round))

    def report_folded(self, request: TaskRequest) -> None:
        """Report that the updates of a request are in the round's total."""
        self._observe(UpdatesFolded(request.task, request.record.round, tuple(sorted(request.answers))))

    def require_quorum(self, request: TaskRequest) -> None:
        """Raise `QuorumError` unless the answers reach the quorum."""
        if not self._has_quorum(request):
            raise quorum_error(request.task, request.quorum, list(request.contents), request.failed)

    def await_quorum(self, quorum: int) -> list[str]:
        """Return the names of the connected clients, sorted, once there are `quorum`; or raise `QuorumError`.

        The longest wait is one deadline, and another one for each of `quorum_retries` unless the contract says "fail".
        """
        server = self._server
        retries = 0 if server.on_quorum_failure == "fail" else server.quorum_retries
        return self.await_clients(quorum, (retries + 1) * server.deadline_s)

    def await_return(self, clients: Sequence[str]) -> None:
        """After a restart, wait until these clients are connected again, up to the end of their grace."""
        with suppress(QuorumError), self._waiting():
            self._state.wait_for_clients(len(clients), max(0.0, self._grace_until - time.monotonic()), clients)

    def await_start(self, count: int) -> None:
        """Wait without a limit until `count` clients are connected, and stay connected for a moment."""
        while True:
            connected = self.await_clients(count, timeout_s=None)
            with self._waiting():
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
            with self._waiting():
                return self._state.wait_for_clients(count, timeout_s, among)
        return self._state.wait_for_clients(count, timeout_s, among)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Report that the workflow waits while the block lasts."""
        self._observe(WaitBegan())
        try:
            yield
        finally:
            self._observe(WaitEnded())

    def _has_quorum(self, request: TaskRequest) -> bool:
        return len(request.answers) >= request.quorum

    def _wait_before_retry(self, request: TaskRequest, retry: int, retries: int) -> None:
        delay_s = min(MAX_RETRY_DELAY_S, 2.0 ** (retry - 1))
        request.record.asked_again += 1
        self._observe(
            TaskRetried(
                request.task,
                request.record.round,
                len(request.answers),
                request.quorum,
                tuple(request.missing),
                retry,
                retries,
                delay_s,
            )
        )
        with self._waiting():
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
