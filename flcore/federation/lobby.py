"""The lobby: the service that the agents of the sites join. It offers them the jobs that run.

After each welcome an agent is sent all open offers, and then `Withdrawal(ALL_OFFERED)`: a job that it runs and that was
not among them is over. An agent downloads the pack of an offer, if it wants it, and refuses by reporting a failure.
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from flcore_layout import ALIGNMENT, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import Buffer, ClientLink, IncomingUpload, Outbox, PieceCache, Refused, TaskAssignment, Withdrawal

from flcore.federation.audit import REQUEST_KINDS
from flcore.federation.lobby_messages import ALL_OFFERED, JobOffer
from flcore.job.contract import Contract
from flcore.job.messages import AgentJoinContent, JoinContent, MalformedMessage, parse_content
from flcore.server.events import CallRefused, ClientJoined, ClientLeft, ClientRevoked, JoinRefused, Observer
from flcore.server.outgoing_messages import OutgoingMessages
from flcore.text import printable
from flcore.version import __version__

MAX_REASON_CHARACTERS = 1_000


class LobbyListener(Protocol):
    """What hears of agents. Called without the lobby's lock, one call for each event."""

    def agents_changed(self, connected: frozenset[str]) -> None:
        """An agent has connected or disconnected."""
        ...

    def job_refused(self, number: int, client: str, reason: str) -> None:
        """An agent does not run a job."""
        ...


@dataclass(frozen=True)
class _OpenJob:
    """A job that is offered."""

    assignment: TaskAssignment
    may_join: Callable[[str], bool]
    pack: "PackPayload"
    cache: PieceCache


class PackPayload:
    """A pack as the payload of an offer: one segment of bytes, padded with zeros. Read from its file in ranges."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self._path, self._nbytes = path, nbytes
        padded = -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.layout = Layout((PayloadPart("pack", (Segment("uint8", padded),)),))

    def read(self, range_: SegmentRange) -> Sequence[Buffer]:
        """Return the bytes of a range."""
        try:
            with self._path.open("rb", buffering=0) as file:
                body = os.pread(file.fileno(), range_.count, range_.first)
        except OSError as error:
            raise Refused("no-pack", "the server could not read the pack") from error  # no path of the server
        if range_.first + len(body) < min(self._nbytes, range_.first + range_.count):
            raise Refused("no-pack", "the server has less of the pack than it said")
        return [body, bytes(range_.count - len(body))]


def _explain_join(content: bytes) -> str:
    """Return what came instead of an agent's join, and what to do."""
    try:
        parse_content(JoinContent, content)
    except MalformedMessage:
        return f"the join is none of an agent's; use the version of flcore that the server has, {__version__}"
    return "this is the client of a single job; start it without a job: flcore client --kit KIT"


class Lobby:
    """A `Service` for agents, and the offers of the running jobs. Thread-safe.

    Args:
        listener: Hears of agents and of their refusals.
        observe: Receives joins and refused calls, for the audit log.
    """

    def __init__(self, listener: LobbyListener, observe: Observer) -> None:
        self._listener, self._observe = listener, observe
        self._lock = threading.Lock()
        self._links: dict[str, ClientLink] = {}
        self._jobs: dict[int, _OpenJob] = {}
        self._outgoing = OutgoingMessages()

    # Called by the scheduler.

    def offer(self, number: int, offer: JobOffer, contract: Contract, pack: Path) -> None:
        """Offer a job to all sites that it invites, now and after each welcome, until it is withdrawn."""
        payload = PackPayload(pack, offer.pack_nbytes)
        assignment = TaskAssignment(number, offer.to_bytes(), payload.layout, offer.pack_digest)
        job = _OpenJob(assignment, contract.may_join, payload, PieceCache())
        with self._lock:
            self._jobs[number] = job
            for client, link in self._links.items():
                if job.may_join(client):
                    self._outgoing.append(partial(link.send, assignment))
        self._outgoing.flush()

    def withdraw(self, number: int) -> None:
        """A job is over: its agents end its processes. Does nothing if it is not offered."""
        with self._lock:
            job = self._jobs.pop(number, None)
            if job is None:
                return
            for client, link in self._links.items():
                if job.may_join(client):
                    self._outgoing.append(partial(link.cancel_transfers, number))
                    self._outgoing.append(partial(link.send, Withdrawal(number)))
        self._outgoing.flush()

    def has_offer(self, number: int) -> bool:
        """Whether a job is offered."""
        with self._lock:
            return number in self._jobs

    def offered_to(self, number: int) -> list[str]:
        """Return the connected sites that a job is offered to."""
        with self._lock:
            job = self._jobs.get(number)
            return [] if job is None else sorted(client for client in self._links if job.may_join(client))

    # Called by the transport, from any thread (`flcore_transport.Service`).

    def authorize(self, client: str) -> None:
        """Let every member join: the transport has verified its certificate, and `MembersOnly` its role."""

    def admit(self, client: str, content: bytes) -> bytes:
        """Admit an agent. A client of a job is refused: its process names the job in its calls."""
        try:
            parse_content(AgentJoinContent, content)
        except MalformedMessage as error:
            reason = f"client {client!r}: this server is a standing federation, and {_explain_join(content)}"
            self._observe(JoinRefused(client, reason))
            raise Refused(error.kind, reason) from error
        return b""

    def join_refused(self, client: str, reason: str) -> None:
        """A join was refused before its content was looked at."""
        self._observe(JoinRefused(client, reason))

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None:
        """A call was refused for its certificate or its session's secret, or it is a request that was refused."""
        if kind not in REQUEST_KINDS:
            self._observe(CallRefused(client, fingerprint, kind, reason))

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None:
        """The transport ended a session for its certificate."""
        self._observe(ClientRevoked(client, fingerprint, reason))

    def client_connected(self, client: str, link: ClientLink) -> None:
        """An agent can be reached. It is sent all open offers."""
        with self._lock:
            self._links[client] = link
            for number in sorted(self._jobs):
                if self._jobs[number].may_join(client):
                    self._outgoing.append(partial(link.send, self._jobs[number].assignment))
            self._outgoing.append(partial(link.send, Withdrawal(ALL_OFFERED)))
            connected = frozenset(self._links)
        self._outgoing.flush()
        self._observe(ClientJoined(client, len(connected)))
        self._listener.agents_changed(connected)

    def client_disconnected(self, client: str) -> None:
        """An agent cannot be reached any more."""
        with self._lock:
            self._links.pop(client, None)
            connected = frozenset(self._links)
        self._observe(ClientLeft(client, len(connected)))
        self._listener.agents_changed(connected)

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:  # noqa: ARG002 - no offer has one
        """Return the pack of an offer."""
        job = self._require(client, assignment_id)
        return Outbox(job.pack, job.cache)

    def begin_upload(self, client: str, *_: object) -> IncomingUpload:
        """Refuse: an offer has no answer."""
        raise Refused("untimely", f"client {client!r}: an offer of a job has no answer; join the job itself")

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:  # noqa: ARG002
        """An agent refuses a job, or cannot run it."""
        self._require(client, assignment_id)
        self._listener.job_refused(assignment_id, client, printable(message, MAX_REASON_CHARACTERS))

    def _require(self, client: str, number: int) -> _OpenJob:
        with self._lock:
            job = self._jobs.get(number)
        if job is None or not job.may_join(client):
            raise Refused("untimely", f"client {client!r}: job {number} is not offered to it, or is over")
        return job
