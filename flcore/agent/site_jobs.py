"""The jobs of a site: each is admitted or refused, runs, and is removed when it is over.

What happens to them is queued, and one thread handles it in order: that thread alone changes the jobs. Another thread
admits jobs one by one, as a download may take long, and a session has one at a time. Each process has a thread, too.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from flcore_transport import TaskAssignment

from flcore.agent.agent_directory import AgentDirectory
from flcore.agent.job_admission import JobAdmission
from flcore.agent.job_process import HIDDEN, JobSetup
from flcore.agent.site_policy import Admitted, NoPlace, Refusal
from flcore.agent.site_reports import SiteReports
from flcore.agent.standby import StandbyProcesses
from flcore.agent.supervised_job import Ending, SupervisedJob
from flcore.federation.lobby_messages import JobOffer
from flcore.job.messages import MalformedMessage, parse_content
from flcore.text import printable, without_folders


class LobbyCalls(Protocol):
    """The calls to the server about an offer. They wait for a server that is away."""

    def download(self, assignment: TaskAssignment, offer: JobOffer, path: Path, is_wanted: Callable[[], bool]) -> None:
        """Download an offer's pack into a file, as long as it is wanted."""
        ...

    def refuse(self, assignment: TaskAssignment, reason: str) -> None:
        """Tell that the job does not run here. A call that fails is made again when the job is offered again."""
        ...


@dataclass(eq=False)
class _SiteJob:
    """A job that was offered.

    Attributes:
        is_examined: It is being admitted.
        is_waiting: It is admitted as soon as the site has a place for one more job.
        places_before: `SiteJobs._places` when its examination began.
        supervised: Its process, while it runs.
        reason: Why it does not run here, for the lead.
        is_final: Whether `reason` stays when the job is offered again. Otherwise it is examined again.
        is_leaving: It is over: it is removed when nothing of it runs any more.
        successor: The offer of another job with the same number, by a federation that was set up anew.
    """

    offer: JobOffer
    assignment: TaskAssignment
    is_examined: bool = False
    is_waiting: bool = False
    places_before: int = 0
    supervised: SupervisedJob | None = None
    reason: str = ""
    is_final: bool = False
    is_leaving: bool = False
    successor: TaskAssignment | None = None


class SiteJobs:
    """The jobs of a site. Methods may be called from any thread, and return at once.

    Args:
        admission: Decides which jobs run.
        directory: The agent's directory.
        processes: Starts processes.
        reports: Takes what the server may be told.
        calls: The calls about offers.
        make_setup: Returns the setup of a job's process, from the offer and the code that was admitted.
        notify: Receives lines for the site's owner.
        shares_errors: Whether the server may get the messages of exceptions.
        show_progress: Receives a line on the progress of a task, once a second at most for each job.
    """

    def __init__(
        self,
        admission: JobAdmission,
        directory: AgentDirectory,
        processes: StandbyProcesses,
        reports: SiteReports,
        calls: LobbyCalls,
        make_setup: Callable[[JobOffer, Admitted], JobSetup],
        notify: Callable[[str], None],
        *,
        shares_errors: bool,
        show_progress: Callable[[str], None],
    ) -> None:
        self._show_progress = show_progress
        self._admission, self._directory, self._processes = admission, directory, processes
        self._reports, self._calls, self._make_setup, self._notify = reports, calls, make_setup, notify
        self._shares_errors = shares_errors
        self._jobs: dict[int, _SiteJob] = {}
        self._places = 0  # how often a place for a job has become free
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._examinations: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(self._commands,), name="site-jobs", daemon=True)
        self._thread.start()
        threading.Thread(target=self._work, args=(self._examinations,), name="admission", daemon=True).start()

    def offered(self, assignment: TaskAssignment) -> None:
        """A job is offered, perhaps again."""
        self._commands.put(partial(self._offer, assignment))

    def withdrawn(self, number: int) -> None:
        """A job is over."""
        self._commands.put(partial(self._withdraw, number))

    def all_offered(self, numbers: frozenset[int]) -> None:
        """These jobs are offered. Others are over."""
        self._commands.put(partial(self._keep, numbers))

    def close(self) -> None:
        """End all processes, and wait until they have ended. What the jobs have on disk stays."""
        self._examinations.put(None)
        self._commands.put(None)
        self._thread.join()
        running = [job.supervised for job in self._jobs.values() if job.supervised is not None]
        for supervised in running:
            supervised.stop()
        for supervised in running:
            supervised.join()

    def _work(self, commands: "SimpleQueue[Callable[[], None] | None]") -> None:
        while (command := commands.get()) is not None:
            try:
                command()
            except Exception as error:  # noqa: BLE001 - without this, no later message would be handled
                self._notify(f"{type(error).__name__}: {error}")

    def _offer(self, assignment: TaskAssignment) -> None:
        try:
            offer = parse_content(JobOffer, assignment.content)
        except MalformedMessage as error:
            self._calls.refuse(assignment, printable(f"the offer cannot be read: {error}"))
            return
        job = self._jobs.get(assignment.assignment_id)
        if job is not None and (job.is_leaving or job.offer != offer):
            job.successor = assignment
            self._withdraw(assignment.assignment_id)
            return
        if job is None:
            job = self._jobs[assignment.assignment_id] = _SiteJob(offer, assignment)
        job.assignment = assignment
        if job.is_final:
            self._calls.refuse(assignment, job.reason)
        elif not (job.is_examined or job.supervised):
            self._examine(job)

    def _examine(self, job: _SiteJob) -> None:
        """Have a job admitted or refused, after those that were offered before."""
        job.is_examined, job.is_waiting, job.places_before = True, False, self._places
        running = sum(1 for other in self._jobs.values() if other.supervised or (other.is_examined and other != job))

        def download(path: Path) -> None:
            self._notify(f"{job.offer.id}: downloading its pack, {job.offer.pack_nbytes:,} bytes")
            self._calls.download(job.assignment, job.offer, path, lambda: not job.is_leaving)

        def admit() -> None:
            decision: Admitted | NoPlace | Refusal = Refusal("the job is over")  # it was withdrawn while it waited
            try:
                if job.is_leaving:
                    return
                prepare = partial(self._directory.prepare, job.offer)
                decision = self._admission.admit(job.offer, running, prepare, download)
            except Exception as error:  # noqa: BLE001 - without this, the job would be examined for ever
                decision = Refusal(f"the job cannot be examined: {_for_lead(error)}")
            finally:
                self._commands.put(partial(self._decide, job, decision))

        self._examinations.put(admit)

    def _decide(self, job: _SiteJob, decision: Admitted | NoPlace | Refusal) -> None:
        job.is_examined = False
        if job.is_leaving:
            self._remove(job)
        elif isinstance(decision, NoPlace):
            self._wait_for_place(job, decision.reason)
            return
        elif isinstance(decision, Refusal):
            self._refuse(job, decision.reason, is_final=False)
        else:
            try:
                self._start(job, decision)
            except OSError as error:
                self._refuse(job, f"the job cannot be started: {_for_lead(error)}", is_final=False)
        if job.supervised is None:
            self._place_is_free()

    def _wait_for_place(self, job: _SiteJob, reason: str) -> None:
        """Keep a job until another one is over. It is no refusal: with too many of those, the server ends the job."""
        if job.places_before != self._places:  # a place has become free during the examination
            self._examine(job)
            return
        job.is_waiting = True
        if job.reason != reason:  # else told before
            job.reason = reason
            self._notify(f"{job.offer.id}: waits: {reason}")
            self._reports.of_job(job.offer.id).error(f"the job waits for a place: {reason}")

    def _place_is_free(self) -> None:
        """Examine the job that has waited longest. If it does not start, its place is free for the next one."""
        self._places += 1
        job = next((job for job in self._jobs.values() if job.is_waiting and not job.is_leaving), None)
        if job is not None:
            self._examine(job)

    def _start(self, job: _SiteJob, code: Admitted) -> None:
        self._directory.prepare(job.offer)
        job.supervised = SupervisedJob(
            self._make_setup(job.offer, code),
            self._processes,
            self._directory.log(job.offer.id),
            self._reports.of_job(job.offer.id),
            self._notify,
            self._show_progress,
            lambda ending: self._commands.put(partial(self._end, job, ending)),
        )
        self._notify(f"{job.offer.id}: starts")
        job.supervised.start()
        self._watch_hours(job)

    def _watch_hours(self, job: _SiteJob) -> None:
        """End a job that still runs when the site's hours are over."""
        left_s = self._admission.hours_left_s()
        if job.supervised is None or left_s is None:
            return
        if not left_s:
            job.reason = self._admission.hours_reason
            job.supervised.stop()
            return
        # The clock may be changed meanwhile, so the time is looked at again.
        timer = threading.Timer(left_s, lambda: self._commands.put(partial(self._watch_hours, job)))
        timer.daemon = True
        timer.start()

    def _end(self, job: _SiteJob, ending: Ending) -> None:
        job.supervised = None
        self._notify(f"{job.offer.id}: {'is over' if job.is_leaving else ending.text}")
        if job.is_leaving:
            self._remove(job)
        elif ending.outcome == "stopped":
            self._refuse(job, job.reason, is_final=False)
        elif ending.outcome not in ("over", "failed"):  # after these the withdrawal follows
            is_hidden = not self._shares_errors and ending.outcome != "refused"
            self._refuse(job, f"the job does not run: {HIDDEN}" if is_hidden else ending.text, is_final=True)
        self._place_is_free()

    def _refuse(self, job: _SiteJob, reason: str, *, is_final: bool) -> None:
        job.reason, job.is_final = without_folders(reason), is_final
        self._notify(f"{job.offer.id}: refused: {reason}")
        self._calls.refuse(job.assignment, job.reason)

    def _withdraw(self, number: int) -> None:
        job = self._jobs.get(number)
        if job is None:
            return
        job.is_leaving = True
        if job.supervised is not None:
            job.supervised.stop()
        elif not job.is_examined:
            self._remove(job)

    def _remove(self, job: _SiteJob) -> None:
        del self._jobs[job.assignment.assignment_id]
        self._directory.remove(job.offer.id)
        self._directory.remove_old_logs()
        if job.successor is not None:
            self._offer(job.successor)

    def _keep(self, numbers: frozenset[int]) -> None:
        for number in self._jobs.keys() - numbers:
            self._withdraw(number)
        for left in self._directory.job_ids() - {job.offer.id for job in self._jobs.values()}:
            self._directory.remove(left)
        self._directory.remove_old_logs()


def _for_lead(error: Exception) -> str:
    """Return an error in one line without the paths of the site, which an `OSError` names."""
    return printable(error.strerror or "a file" if isinstance(error, OSError) else str(error), 1_000)
