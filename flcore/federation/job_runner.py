"""One running job: its `serve()` in a thread, its log, and what is known of it while it runs."""

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from flcore_transport import Service

from flcore.aggregation.budget import Budget
from flcore.disk_errors import is_disk_error
from flcore.errors import DiskError, FlcoreError, JobAborted, ServerStopped
from flcore.event_log.log import Log, log_events
from flcore.federation.bounded_log import SERVER_LOG_BYTES, BoundedLog
from flcore.federation.job_files import JobDirectories
from flcore.federation.job_rows import JobRow
from flcore.federation.messages import JobState, SiteProgress
from flcore.federation.site_parts import SitePart, SiteParts
from flcore.job.job import Job
from flcore.job.pack import open_pack
from flcore.job.parsing import contract_from_json
from flcore.progress import TaskProgress
from flcore.server.audit_chain import AUDIT_FILE
from flcore.server.events import (
    AnswerRefused,
    ClientFailed,
    ClientJoined,
    ClientLeft,
    Event,
    RoundFinished,
    RuleBegan,
    RuleEnded,
    RunContinued,
    RunEnded,
    TaskAnswered,
    WaitBegan,
    WaitEnded,
    WaitingForClients,
    notify_all,
)
from flcore.server.federation import Federation
from flcore.server.federation_state import FederationState
from flcore.server.history import RoundRecord
from flcore.server.recorded_run import Durability
from flcore.server.serve import Server, serve
from flcore.status.board import StatusBoard
from flcore.status.observed_run import ObservedRun, OpenObserver, open_observers
from flcore.text import printable, without_folders

logger = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 1_000
MAX_TRACEBACK_CHARACTERS = 10_000


@dataclass(frozen=True)
class RunSettings:
    """What all jobs of a server have in common.

    Attributes:
        budget: The share of one job in the server's budget.
        plan: When updates are folded: "batch" or "streaming".
        durability: When a client gets its receipt (`serve`).
        observe_runs: Open observers of each run.
    """

    budget: Budget
    plan: str = "batch"
    durability: Durability = "disk"
    observe_runs: tuple[OpenObserver, ...] = ()


class JobEnd(NamedTuple):
    """How a job's thread has ended. `state` is None for a job that goes on when the server is started again.

    It then has a reason if the disk has interrupted it, and none if the server stops.
    """

    state: JobState | None
    reason: str


class RunnerListener(Protocol):
    """What hears of a running job. Called on the job's thread, or on the transport's."""

    def site_joined(self, number: int, client: str) -> None:
        """A site's process has joined the job."""
        ...

    def site_left(self, number: int) -> None:
        """A site's process has left the job."""
        ...

    def job_code_runs(self, number: int, *, begins: bool) -> None:
        """Code of the job begins to run, or ends: its workflow goes on or waits, its rule is asked or has answered."""
        ...

    def job_progressed(self, number: int) -> None:
        """A site's answer is committed, or a round is over."""
        ...

    def job_changed(self, number: int) -> None:
        """A round is over, or there is more to read in the job's log."""
        ...

    def status_changed(self) -> None:
        """A job's board has changed. Called for each event of a job's server."""
        ...

    def job_ended(self, runner: "JobRunner", end: JobEnd) -> None:
        """The job's thread ends."""
        ...


class JobRunner:
    """A job that runs. `start` begins, `stop` ends it from outside; both return at once.

    Args:
        row: The job.
        files: The files of jobs.
        pack: The job's pack.
        host: Hosts a service under the job's id.
        settings: What all jobs have in common.
        listener: Hears of the job.

    Attributes:
        board: The board of the job's present or last run.
    """

    def __init__(
        self,
        row: JobRow,
        files: JobDirectories,
        pack: Path,
        host: Callable[[str, Service], Server],
        settings: RunSettings,
        listener: RunnerListener,
    ) -> None:
        self.row, self.contract = row, contract_from_json(row.contract, row.id)
        self.board = StatusBoard.of(self.contract, id=row.id)
        self._files, self._pack, self._host = files, pack, host
        self._settings, self._listener = settings, listener
        self._lock = threading.Lock()
        self._state: FederationState | None = None
        self._error: FlcoreError | None = None
        self._joined: frozenset[str] = frozenset()
        self._seen: frozenset[str] = frozenset()
        self._progress: dict[str, SiteProgress] = {}
        self._parts = SiteParts()
        self._round, self._metrics = 0, dict[str, float]()
        self._thread = threading.Thread(target=self._run, name=f"flcore-job-{row.id}", daemon=True)

    def start(self) -> None:
        """Start the job's thread."""
        self._thread.start()

    def stop(self, error: FlcoreError) -> None:
        """End the job with an error, as soon as it waits for clients or makes its next call of the controller."""
        with self._lock:
            self._error = self._error or error
            state = self._state
        if state is not None:
            state.stop_waiting(str(error), error)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread. Returns whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def result(self) -> tuple[int, dict[str, float]]:
        """The number of rounds that are over, and the metrics of the last one."""
        with self._lock:
            return self._round, dict(self._metrics)

    @property
    def joined(self) -> frozenset[str]:
        """The sites whose processes are in the job now."""
        with self._lock:
            return self._joined

    @property
    def progress(self) -> dict[str, SiteProgress]:
        """How far each site's present task is."""
        with self._lock:
            return dict(self._progress)

    @property
    def parts(self) -> Mapping[str, SitePart]:
        """What each site has done so far."""
        return self._parts.all()

    def report_progress(self, client: str, progress: SiteProgress) -> None:
        """A site tells how far its task is. One that the contract does not invite is ignored."""
        if self.contract.may_join(client):
            with self._lock:
                self._progress[client] = progress
            rounds = self.contract.server.rounds
            done, total = progress.done, progress.total
            self.board.observe(TaskProgress(client, progress.task, progress.round, rounds, done, total))
            self._listener.status_changed()

    def sites(self, offered: list[str], refused: dict[str, str]) -> dict[str, str]:
        """Return each site's part in the job: "joined", "away", "offered", or "refused: " and the reason."""
        with self._lock:
            joined, seen = self._joined, self._seen
        parts = dict.fromkeys(offered, "offered")
        if isinstance(self.contract.clients, tuple):
            parts = dict.fromkeys(self.contract.clients, "away") | parts
        parts |= dict.fromkeys(seen, "away") | dict.fromkeys(joined, "joined")
        parts |= {client: f"refused: {reason}" for client, reason in refused.items() if client not in joined}
        return dict(sorted(parts.items()))

    def _run(self) -> None:
        end = JobEnd(None, "the job's log cannot be written; it goes on when the server is started again")
        try:
            log_file = BoundedLog(self._files.server_log(self.row.id), SERVER_LOG_BYTES, self._report_change)
            with Log("text", None, job=self.row.id, write_file=log_file.write) as log:
                end = self._run_to_end(log)
                log.write_line(_last_line(end), "end", level=logging.ERROR if end.state == "failed" else logging.INFO)
        except OSError as error:
            logger.warning("the log of %s cannot be written: %s", self.row.id, error)
        finally:
            self._listener.job_ended(self, end)

    def _run_to_end(self, log: Log) -> JobEnd:
        try:
            self._parts.load(self._files.run(self.row.id) / AUDIT_FILE)
            if not self._files.has_ended(self.row.id):  # else killed between the run's end and the database
                self._serve(log)
            last = self._files.last_record(self.row.id)
            if last is not None:
                self._record_round(last)
            stopped = (
                "" if last is None or not last.stopped else f"stopped early after round {last.round}: {last.stopped}"
            )
        except JobAborted as error:
            return JobEnd("aborted", str(error))
        except ServerStopped:
            return JobEnd(None, "")
        except BaseException as error:  # noqa: BLE001 - whatever a lead's workflow raises ends its job, no other one
            return self._describe_failure(error, log)
        return JobEnd("done", printable(stopped, MAX_REASON_CHARACTERS))

    @staticmethod
    def _describe_failure(error: BaseException, log: Log) -> JobEnd:
        if is_disk_error(error):
            advice = "" if isinstance(error, DiskError) else "; it goes on when the server is started again"
            return JobEnd(None, f"{one_line(error)}{advice}")
        if isinstance(error, FlcoreError):
            return JobEnd("failed", one_line(error))
        log.write_line(printable(traceback.format_exc(), MAX_TRACEBACK_CHARACTERS), "traceback")
        return JobEnd("failed", f"{type(error).__name__}: {one_line(error)}")

    def _serve(self, log: Log) -> None:
        directory = self._files.unpack(self.row.id, open_pack(self._pack))
        write_event, run_directory = log_events(log, self.contract), self._files.run(self.row.id)
        ended = threading.Event()

        def observe(event: Event) -> None:
            if isinstance(event, RunEnded):
                ended.set()
            elif isinstance(event, ClientFailed) and ended.is_set():
                return  # its answer came when the run's files were closed already: no fault of the client
            event = self._for_the_lead(event)
            if isinstance(event, WaitingForClients) and not self._has_sites():
                log.write_line(starting_line(event), "waiting_for_clients")
            else:
                write_event(event)
            self._observe(event)
            self._listener.status_changed()

        observed = ObservedRun(self.row.id, self.contract, self.board, run_directory)
        with open_observers(self._settings.observe_runs, observed) as observe_run:
            serve(
                Job(self.contract, directory),
                lambda service: self._host(self.row.id, service),
                started=self._started,
                directory=run_directory,
                observe=notify_all(observe, observe_run),
                plan=self._settings.plan,
                budget=self._settings.budget,
                durability=self._settings.durability,
                board=self.board,
            )

    def _has_sites(self) -> bool:
        """Whether a site's process has joined since the job was started, or started again."""
        with self._lock:
            return bool(self._seen)

    def _started(self, _: Server, federation: Federation) -> None:
        with self._lock:
            self._state, error = federation.state, self._error
        if error is not None:
            federation.state.stop_waiting(str(error), error)

    def _for_the_lead(self, event: Event) -> Event:
        """Return an event without the server's folders, as leads read the job's log. The server's own log has them."""
        if not isinstance(event, ClientFailed | AnswerRefused | RunEnded):
            return event
        told = replace(event, reason=without_folders(event.reason))
        if told != event and not isinstance(event, AnswerRefused):  # `ClientFailed` follows it, with the same reason
            who = f"{event.client} failed in {event.task}" if isinstance(event, ClientFailed) else "the run ended"
            logger.warning("%s: %s: %s", self.row.id, who, printable(event.reason, MAX_REASON_CHARACTERS))
        return told

    def _observe(self, event: Event) -> None:
        match event:
            case ClientJoined():
                with self._lock:
                    self._joined |= {event.client}
                    self._seen |= {event.client}
                self._parts.joined(event.client)
                self._listener.site_joined(self.row.number, event.client)
            case ClientLeft():
                with self._lock:
                    self._joined -= {event.client}
                    self._progress.pop(event.client, None)
                self._listener.site_left(self.row.number)
            case TaskAnswered():
                self._parts.answered(event.client, event.round)
                self._listener.job_progressed(self.row.number)
            case WaitBegan() | WaitEnded() | RuleBegan() | RuleEnded():
                self._listener.job_code_runs(self.row.number, begins=isinstance(event, WaitEnded | RuleBegan))
            case ClientFailed():
                self._parts.failed(event.client, f"{event.task}: {event.reason}")
            case RunContinued():
                with self._lock:
                    self._round = event.rounds
            case RoundFinished():
                self._record_round(event.record)
                with self._lock:
                    self._progress.clear()
                self._listener.job_progressed(self.row.number)
                self._report_change()
            case _:
                pass

    def _record_round(self, record: RoundRecord) -> None:
        with self._lock:
            self._round, self._metrics = record.round, record.metrics

    def _report_change(self) -> None:
        self._listener.job_changed(self.row.number)


def starting_line(event: WaitingForClients) -> str:
    """Return the line on the wait with which each job begins: its sites have the offer, and start their processes.

    >>> starting_line(WaitingForClients(0, 2, ("north", "south"), None))
    'offered to the sites, which start their processes of the job; it begins when 2 have joined'
    """
    return f"offered to the sites, which start their processes of the job; it begins when {event.needed} have joined"


def _last_line(end: JobEnd) -> str:
    """Return the last line of a job's log: how the job has ended, and why.

    >>> _last_line(JobEnd("failed", "no data today")), _last_line(JobEnd("done", "")), _last_line(JobEnd(None, ""))
    ('failed: no data today', 'done', 'the server stops')
    """
    if end.state is None:
        return f"interrupted: {end.reason}" if end.reason else "the server stops"
    return f"{end.state}: {end.reason}" if end.reason else end.state


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, without the paths of the server: all leads read it."""
    lines = without_folders(str(error)[: 2 * MAX_REASON_CHARACTERS]).splitlines()
    return printable("; ".join(line.strip() for line in lines), MAX_REASON_CHARACTERS)
