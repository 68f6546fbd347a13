"""The agent of a site: it joins the lobby of a standing federation, and runs the jobs that its owner allows.

One thread listens to the session, and joins again when it breaks. Offers and withdrawals go to `SiteJobs`. Reports have
a thread, and each job has one. Nothing waits for time to pass while there is no job.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flcore_transport import (
    JOB_FAILED,
    JOB_OVER,
    UNKNOWN_SESSION,
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    GrpcConnection,
    Join,
    Refused,
    TaskAssignment,
    TlsKeys,
    TransportError,
    Welcome,
    Withdrawal,
    WrongServer,
)

from flcore.agent.agent_directory import AgentDirectory
from flcore.agent.job_admission import JobAdmission
from flcore.agent.job_process import JobSetup
from flcore.agent.pack_download import download_pack
from flcore.agent.site_jobs import SiteJobs
from flcore.agent.site_policy import Admitted
from flcore.agent.site_reports import SiteReports
from flcore.agent.site_rules import SiteRules, parse_site_rules, site_path
from flcore.agent.standby import StandbyProcesses, require_python
from flcore.client.outage import Outage
from flcore.federation.lobby_messages import ALL_OFFERED, JobOffer
from flcore.job.messages import AgentJoinContent
from flcore.version import __version__

AWAY = (JOB_OVER, JOB_FAILED, UNKNOWN_SESSION)
"""The kinds of refusals of a join after which the agent joins again: the server is ending, and comes back."""

DOWNLOAD_RETRY_S = 0.5
"""The delay before a download goes on."""


@dataclass(frozen=True)
class AgentIdentity:
    """How an agent and the processes of its jobs reach the server.

    Attributes:
        client: The site's name.
        address: The server's address.
        keys: The keys for TLS. None: plaintext.
        allow_remote: Whether plaintext may leave this machine. Default: False.
    """

    client: str
    address: str
    keys: TlsKeys | None
    allow_remote: bool = False

    def connect(self) -> GrpcConnection:
        """Return a connection to the lobby."""
        return GrpcConnection(self.address, keys=self.keys, allow_remote=self.allow_remote)


class Agent:
    """A site's agent.

    Args:
        identity: How the server is reached.
        content: The content of the site.toml.
        site_file: The site.toml. None: there is none.
        state: The agent's directory.
        job_directories: Job directories that the command line adds. Default: none.
        notify: Receives lines for the site's owner. Default: ignores them.
        show_progress: Receives a line on the progress of a task, once a second at most for each job. Default: ignores
            them.
        give_up_after_s: The agent ends when the server has been away for this long. Default: None, it waits for ever.
        now: The local time. Default: the machine's clock.

    Raises:
        JobError: The site.toml, a job directory, the `python` or the agent's directory cannot be used.
    """

    def __init__(
        self,
        identity: AgentIdentity,
        content: dict[str, Any],
        site_file: Path | None,
        state: Path,
        *,
        job_directories: tuple[Path, ...] = (),
        notify: Callable[[str], None] = lambda _: None,
        show_progress: Callable[[str], None] = lambda _: None,
        give_up_after_s: float | None = None,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._identity, self._site_file, self._notify = identity, site_file, notify
        self._rules = parse_site_rules(content, "site.toml" if site_file is None else str(site_file))
        admission = JobAdmission(self._rules, site_file, job_directories, now)
        self._nothing_runs = admission.nothing_runs
        python = _python(self._rules, site_file)
        self._directory = AgentDirectory(state)
        self._outage = Outage(give_up_after_s, time.monotonic)
        self._connection = identity.connect()
        self._session_secret = ""
        self._offered: frozenset[int] = frozenset()
        self._stopping = threading.Event()
        self._processes = StandbyProcesses(python, self._rules.limits.gpus)
        self._reports = SiteReports(self._connection.ask, identity.client, self._rules.share_logs)
        self._jobs = SiteJobs(
            admission,
            self._directory,
            self._processes,
            self._reports,
            self,
            self._make_setup,
            notify,
            shares_errors=self._rules.share_logs != "none",
            show_progress=show_progress,
        )

    def run(self) -> None:
        """Take part until `stop` is called.

        Raises:
            Refused: The server does not admit the agent.
            WrongServer: The server is not the expected one.
            ConnectionLost: The server was away for too long.
            OSError: No process can be started.
        """
        if self._nothing_runs:
            self._notify(self._nothing_runs)
        try:
            self._processes.refill()
            self._listen()
        finally:
            self._connection.close()
            self._jobs.close()
            self._processes.close()
            self._reports.close()
            self._directory.close()

    def start(self) -> "Future[None]":
        """Run in a new thread. The future has the result or the exception of `run`."""
        future: Future[None] = Future()

        def work() -> None:
            try:
                self.run()
            except BaseException as error:  # noqa: BLE001 - the future raises it
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=work, name="agent", daemon=True).start()
        return future

    def stop(self) -> None:
        """End the processes of all jobs, and `run`. What the jobs have on disk stays. May be called from any thread."""
        self._stopping.set()
        self._connection.close()

    # The calls about an offer, on threads of `SiteJobs`.

    def download(self, assignment: TaskAssignment, offer: JobOffer, path: Path, is_wanted: Callable[[], bool]) -> None:
        """Download an offer's pack into a file, as long as it is wanted."""
        number = assignment.assignment_id

        def fetch(first_piece: int) -> Iterator[bytes]:
            request = DownloadRequest(self._session_secret, number, first_piece, assignment.token)
            return self._connection.download(request, assignment.payload)

        def may_retry() -> bool:
            return not self._stopping.wait(DOWNLOAD_RETRY_S) and is_wanted()

        download_pack(offer, assignment.payload, path, fetch, may_retry)

    def refuse(self, assignment: TaskAssignment, reason: str) -> None:
        """Tell the server that a job does not run here. It is told again if it offers the job again."""
        failure = Failure(self._session_secret, assignment.assignment_id, reason, assignment.token)
        try:
            self._connection.report(failure)
        except TransportError as error:
            if not self._stopping.is_set():
                self._notify(f"the server was not told of a refusal: {error}")

    # The session, on the thread of `run`.

    def _listen(self) -> None:
        """Hear of offers and withdrawals, and join again when the connection breaks."""
        join = Join(self._identity.client, secrets.token_hex(8), AgentJoinContent(version=__version__).to_bytes())
        while not self._stopping.is_set():
            problem = ""
            try:
                for message in self._connection.session(join):
                    self._receive(message)
                    if isinstance(message, Welcome):
                        problem = "the connection is lost; joining again as soon as the server is there"
                end: TransportError = ConnectionLost(f"{self._identity.address} ended the session")
            except TransportError as error:
                if isinstance(error, WrongServer) or (isinstance(error, Refused) and error.kind not in AWAY):
                    raise
                end = error
            if self._stopping.is_set():
                return
            delay_s, notice = self._outage.failed(problem or f"{end}; trying again")
            if delay_s is None:
                raise ConnectionLost(self._outage.explain_end(str(end))) from end
            if notice:
                self._notify(notice)
            self._stopping.wait(delay_s)

    def _receive(self, message: FromServer) -> None:
        match message:
            case Welcome():
                self._session_secret, self._offered = message.session_secret, frozenset()
                self._outage.ended()
                self._notify(f"joined {self._identity.address}")
            case TaskAssignment():
                self._offered |= {message.assignment_id}
                self._jobs.offered(message)
            case Withdrawal(assignment_id=number) if number == ALL_OFFERED:
                self._jobs.all_offered(self._offered)
            case Withdrawal():
                self._offered -= {message.assignment_id}
                self._jobs.withdrawn(message.assignment_id)
            case Goodbye():
                self._notify(f"the server has ended: {message.reason}")

    def _make_setup(self, offer: JobOffer, code: Admitted) -> JobSetup:
        """Return the setup of a job's process."""
        directory, limits, keys = self._directory.prepare(offer), self._rules.limits, self._identity.keys
        pem = None if keys is None else (keys.private_key, keys.certificate_chain, keys.root_certificates)
        return JobSetup(
            id=offer.id,
            contract=offer.contract,
            directory=str(code.directory),
            code_digest=code.code_digest,
            client=self._identity.client,
            address=self._identity.address,
            keys=None if pem is None else [part.decode() for part in pem],
            allow_remote=self._identity.allow_remote,
            site_file=None if self._site_file is None else str(self._site_file.absolute()),
            state=str(directory.state),
            work=str(directory.work),
            memory_bytes=limits.memory_bytes,
            max_rounds=limits.max_rounds,
            shares_errors=self._rules.share_logs != "none",
        )


def _python(rules: SiteRules, site_file: Path | None) -> str | None:
    """Return the Python of the jobs' processes, if the site has one of its own, which is tried."""
    if rules.python is None:
        return None
    # Absolute, but not resolved: a virtual environment is found by the place of its link.
    python = str(site_path(site_file, rules.python).absolute())
    require_python(python)
    return python
