"""`flcore.connect`: a lead's connection to a standing federation."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from flcore_transport import ConnectionLost, Refused, TlsKeys, split_address
from pydantic import JsonValue

from flcore.errors import CertificateError, ProfileError
from flcore.federation.messages import (
    JOB_ID_PATTERN,
    CloneJob,
    JobList,
    JobQueued,
    JobState,
    JobSummary,
    ListJobs,
    SubmitJob,
)
from flcore.lead.pack_upload import TransferObserver, upload_pack
from flcore.lead.profile import find_profile, profiles_path
from flcore.lead.server_calls import NO_SUCH_ID, Notify, ServerCalls
from flcore.lead.status_reader import read_status, watch_status
from flcore.lead.submitted_job import SubmittedJob
from flcore.model.model_paths import PathLike
from flcore.text import printable

if TYPE_CHECKING:
    from flcore.job.job import Job
    from flcore.status.job_status import FederationStatus

logger = logging.getLogger(__name__)

MAX_WARNING_CHARACTERS = 1_000


class FederationConnection:
    """A lead's connection to a standing federation. `flcore.connect` returns it. A context manager.

    Example:
        >>> with flcore.connect() as federation:  # doctest: +SKIP
        ...     job = federation.submit("myjob", {"server.rounds": 20})
        ...     job.wait()
    """

    def __init__(self, calls: ServerCalls, kit: Path | None = None) -> None:
        self._calls, self._kit = calls, kit

    def __repr__(self) -> str:
        """Return the server's address and the lead."""
        caller = f" as {self._calls.caller}" if self._calls.caller else ""
        return f"<FederationConnection to {self.address}{caller}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The server's address, HOST:PORT."""
        return self._calls.connection.address

    @property
    def caller(self) -> str:
        """The lead's identity in words: name, role and federation. Empty over plaintext."""
        return self._calls.caller

    def submit(
        self,
        job: "PathLike | Job",
        changes: Mapping[str, JsonValue] | None = None,
        *,
        sign: bool = False,
        observe: TransferObserver = lambda *_: None,
    ) -> SubmittedJob:
        """Pack a job, send it, and queue it.

        Args:
            job: A directory with job.toml, the name of a bundled job, a `Job`, or a pack (`flcore job pack`).
            changes: Values that replace keys of the contract, such as `{"server.rounds": 20}`. Default: None. Sites
                take changes of the table `server`, of `seed`, of hyperparameters and of schedules.
            sign: Sign the pack with the kit's key. Default: False; a pack that is a file keeps its signature.
            observe: Receives the bytes that are sent and the bytes in all. Default: nothing.

        Returns:
            The job, queued.

        Raises:
            JobError: There is no job at the path, its contract is invalid, or a change is none that it takes.
            PackError: The pack is damaged, or the job cannot be packed.
            Refused: The server does not take the job; the message says why.
            ConnectionLost: The server is away. Another call resumes the upload.
        """
        from flcore.lead.packing import packed_job  # imports the contract's models, which other commands do without

        if sign and self._kit is None:
            raise CertificateError("expected a kit with the key that signs packs, got none; give one (--kit)")
        changed = dict(changes or {})
        with packed_job(job, changed, self._kit if sign else None, self._calls.notify) as (path, digest):
            upload_pack(self._calls, path, digest, observe)
        return self._queue(SubmitJob(digest=digest, changes=changed))

    def clone(self, id: str, changes: Mapping[str, JsonValue] | None = None) -> SubmittedJob:  # noqa: A002 - its name
        """Queue a job again, from the pack that the server has.

        Args:
            id: The id of an earlier job.
            changes: Values that replace keys of its contract, on top of that job's own changes.

        Returns:
            The new job, queued.
        """
        return self._queue(CloneJob(id=self._require_id(id), changes=dict(changes or {})))

    def jobs(self, states: Sequence[JobState] = (), limit: int = 100) -> list[JobSummary]:
        """Return the newest jobs of the federation, one line about each, the newest first.

        Args:
            states: Only jobs in these states. Default: all.
            limit: The most jobs, up to 1,000.
        """
        found, _ = self._calls.call(ListJobs(states=list(dict.fromkeys(states)), limit=limit), JobList)
        return found.jobs

    @property
    def status(self) -> "FederationStatus":
        """The newest jobs, those that run with their clients; and for an admin the sites. As of now."""
        return cast("FederationStatus", read_status(self._calls, None))

    def watch(self) -> "Iterator[FederationStatus]":
        """Yield the status now, then each time that it has changed, at most once a second. Does not end by itself."""
        for status in watch_status(self._calls, None):
            yield cast("FederationStatus", status)

    def job(self, id: str) -> SubmittedJob:  # noqa: A002 - its name
        """Return a job by its id. Raises `Refused`, with similar ids, if there is none."""
        job = SubmittedJob(self._calls, self._require_id(id))
        _ = job.summary  # asks the server, which refuses an unknown id
        return job

    def close(self) -> None:
        """End the connection. Jobs go on."""
        self._calls.close()

    def _require_id(self, text: str) -> str:
        if re.fullmatch(JOB_ID_PATTERN, text):
            return text
        shown = printable(text, 100)
        raise Refused(
            NO_SUCH_ID, f"expected the id of a job, NAME-NUMBER, got {shown!r}{self._calls.nearest_ids(text)}"
        )

    def _queue(self, request: SubmitJob | CloneJob) -> SubmittedJob:
        try:
            reply, _ = self._calls.call(request, JobQueued)
        except ConnectionLost as error:
            # Not sent again: the job would be queued twice if only the reply was lost.
            raise ConnectionLost(f"{error}; the job may be queued: see `flcore list` before you submit it again") from (
                error
            )
        for warning in reply.warnings:
            self._calls.notify(f"{reply.id}: {printable(warning, MAX_WARNING_CHARACTERS)}")
        return SubmittedJob(self._calls, reply.id)


def connect(
    profile: str | None = None,
    *,
    kit: PathLike | None = None,
    server: str | None = None,
    insecure: bool = False,
    notify: Notify = logger.warning,
) -> FederationConnection:
    """Connect to a standing federation, to submit jobs and follow them. Sends nothing yet.

    Args:
        profile: The profile that `flcore login KIT` has written. Default: None, the one called `default`.
        kit: The directory of an unpacked kit, instead of a profile's.
        server: The server's address, HOST:PORT. Default: None, the profile's or the kit's.
        insecure: Plaintext without TLS, to a server on this machine only. Needs `server`. Default: False.
        notify: Receives one line when the server is away, and each warning about a submission, such as a client of the
            job that has never joined. Default: a warning of the module's logger.

    Returns:
        The connection. Use it as a context manager, or close it.

    Raises:
        ProfileError: There is no such profile, or the address is none.
        CertificateError: The kit cannot be used.

    Example:
        >>> federation = flcore.connect()  # doctest: +SKIP
        >>> federation.jobs()[0].state  # doctest: +SKIP
        'running'
    """
    from flcore_transport import GrpcConnection

    keys, caller, kit_path = None, "", None if kit is None else Path(kit)
    if insecure:
        if kit_path is not None or server is None:
            raise ProfileError("expected --server and no kit with --insecure, which is plaintext on this machine")
    else:
        if kit_path is None:
            found = find_profile(profiles_path(), profile)
            kit_path, server = Path(found.kit), server or found.server
        keys, caller, address = _load_kit(kit_path)
        server = server or address
    return FederationConnection(
        ServerCalls(GrpcConnection(_require_address(server), keys=keys), caller, notify), kit_path
    )


def _load_kit(kit: Path) -> tuple[TlsKeys, str, str]:
    """Return a kit's keys, its identity in words, and the server's address."""
    from flcore.identity.credentials import ClientCertificates
    from flcore.identity.tls import client_keys

    if not kit.is_dir():
        got = "a file; unpack it (unzip KIT.zip), and give the directory" if kit.exists() else "none; unpack it there"
        raise CertificateError(f"{kit}: expected the directory of an unpacked kit, got {got}")
    certificates = ClientCertificates.load(kit)
    who = certificates.identity
    return client_keys(certificates), f"{who.name}, {who.role} of {who.federation}", certificates.server


def _require_address(server: str) -> str:
    try:
        split_address(server)
    except ValueError as error:
        raise ProfileError(f"the server's address: {error}; give it as HOST:PORT (--server)") from error
    return server
