"""One training task at some clients: its aggregator, the updates that are on record, and those that come."""

from collections.abc import Collection
from dataclasses import replace

from flcore.aggregation.aggregator import Aggregator
from flcore.aggregation.kept_staging import KeptStaging, remove_kept_updates
from flcore.aggregation.plans import require_plan
from flcore.aggregation.storage import Storage
from flcore.errors import StagingError
from flcore.job.job import Job
from flcore.model.chunks import GlobalModel
from flcore.model.wire_format import WireFormat
from flcore.rules.kinds import step_of
from flcore.server.recorded_run import RecordedRun
from flcore.server.results import Results
from flcore.server.task_contents import RULE_LABEL, derive_seed, task_returns
from flcore.server.task_runner import TaskRequest, TaskRunner
from flcore.server.updates import StagedUpdates, timed


class Training:
    """Runs training tasks for the controller, in its thread.

    Args:
        job: The job.
        task_runner: Asks the clients.
        results: The results of the run, which lose the rounds that have to be run again.
        storage: Where updates and models are stored.
        run: The run: the workflow's calls, where updates with a receipt lie, and the states of the optimizer.

    Attributes:
        releasable: The numbers of the calls whose updates were combined, and are not in a published model yet.

    Raises:
        JobError: The job's rule cannot be loaded, or does not work with the plan.
    """

    def __init__(
        self,
        job: Job,
        task_runner: TaskRunner,
        results: Results,
        storage: Storage,
        run: RecordedRun,
    ) -> None:
        self._contract, self._rule = job.contract, job.load_rule()
        self._states = run.optimizer_states if step_of(self._rule) is not None else None
        require_plan(self._rule, storage.plan, job.contract.bounds.max_share)
        self._task_runner, self._results, self._storage = task_runner, results, storage
        self._calls, self._kept_updates = run.calls, run.kept_updates
        self.releasable: set[int] = set()
        self._released: set[int] = set()

    def release(self, calls: Collection[int]) -> None:
        """The updates of calls are in a published model. They are needed until the round that published it is over."""
        self.releasable.difference_update(calls)
        self._released.update(calls)

    def end_round(self) -> list[int]:
        """A round is over. Returns the numbers of the calls whose updates are not needed any more."""
        released, self._released = sorted(self._released), set()
        return released

    def remove_updates(self, calls: Collection[int]) -> None:
        """Remove the files of the updates of calls, and states of the optimizer that they do not need any more."""
        if self._states is not None and calls:
            self._states.release(max(calls))
        if self._kept_updates is not None:
            remove_kept_updates(self._kept_updates, sorted(calls))

    def run(self, request: TaskRequest, model: GlobalModel) -> StagedUpdates:
        """Ask the clients of a request for their updates.

        Args:
            request: The task. It gets its aggregator here.
            model: The model that the clients download.

        Returns:
            The updates.

        Raises:
            QuorumError: Too few clients answered.
        """
        aggregator = request.aggregator = self._new_aggregator(request, model)
        releasable, number = self.releasable, request.call.number

        def release() -> None:
            releasable.add(number)

        try:
            lost = self._collect(request, aggregator, model)
        except BaseException:
            aggregator.discard()
            release()
            raise
        return StagedUpdates(
            self._task_runner, model, request, aggregator, lost, release, self._forget_rest, self._states
        )

    def _collect(self, request: TaskRequest, aggregator: Aggregator, model: GlobalModel) -> dict[str, str]:
        """Collect the updates of a call. Returns the reason of each that is on record, and that the disk has lost."""
        call = request.call
        lost = self._restore_updates(request, aggregator)
        if call.result is not None and self._has_updates(request, lost):
            if call.record is not None:
                request.record.restore(call.record)
            request.skip_reason = request.record.skipped if call.result["is_skipped"] else ""
            return lost
        if call.result is not None:  # the updates were in memory, and other ones may give another model
            self._forget_rest()
        with call.noting_failure(), timed(request.record, request.task):
            self._task_runner.record_lost(request, lost)
            self._task_runner.run_until_quorum(request, model)
        request.end(has_answers=self._calls.records_answers)
        return {}

    def _has_updates(self, request: TaskRequest, lost: dict[str, str]) -> bool:
        """Whether the answers of a recorded call are on record, and not only their number."""
        result = request.call.result
        is_on_record = bool(request.answers or lost or not result["clients"])
        return bool(result["has_answers"] and self._calls.records_answers and is_on_record)

    def _forget_rest(self) -> None:
        """The last call gives another result than the one on record: later calls have to be made again."""
        publications = len(self._calls.publications)
        self._calls.forget_rest()
        self._results.forget_rounds(self._calls.records())
        if len(self._calls.publications) < publications:
            self._results.forget_publications(self._calls.publications)

    def _new_aggregator(self, request: TaskRequest, model: GlobalModel) -> Aggregator:
        contract, storage = self._contract, self._storage
        if self._kept_updates is not None:
            kept = KeptStaging(storage.staging.quota, self._kept_updates, request.call.number)
            storage = replace(storage, staging=kept)
        return Aggregator(
            model.spec,
            rule=self._rule,
            average_bytes=contract.server.average_bytes,
            accumulate=contract.server.accumulate,
            base=model if task_returns(contract, request.task) == "delta" else None,
            reference=model,
            max_abs=contract.bounds.max_abs,
            max_share=contract.bounds.max_share,
            seed=derive_seed(contract.seed, request.record.round, RULE_LABEL),
            wire_format=WireFormat.compressed(model.spec, contract.wire.upload),
            storage=storage,
        )

    @staticmethod
    def _restore_updates(request: TaskRequest, aggregator: Aggregator) -> dict[str, str]:
        """Commit the updates that are on record for a call. Returns the reason of each that the disk has lost."""
        lost: dict[str, str] = {}
        answers = request.call.answers()
        for answer in answers:
            try:
                aggregator.restore(answer.client, answer.participation.weight, answer.directory)
            except StagingError as error:
                lost[answer.client] = str(error)
        request.restore_answers(answer for answer in answers if answer.client not in lost)
        return lost
