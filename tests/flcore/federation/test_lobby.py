"""The lobby over gRPC: what an agent is told, and packs that are downloaded while others are."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flcore_transport import (
    DownloadRequest,
    Failure,
    GrpcConnection,
    GrpcServer,
    Join,
    Refused,
    TaskAssignment,
    Welcome,
    Withdrawal,
)

from flcore.federation.lobby import Lobby
from flcore.federation.lobby_messages import JobOffer
from flcore.job.job import Job
from flcore.job.messages import AgentJoinContent
from tests.flcore.federation.small_federation import packed, refused, write_job


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.connected, self.refusals = frozenset[str](), list[tuple[int, str, str]]()

    def agents_changed(self, connected: frozenset[str]) -> None:
        self.connected = connected

    def job_refused(self, number: int, client: str, reason: str) -> None:
        self.refusals.append((number, client, reason))


class Stage:
    """A lobby with offers of one pack, and agents' connections."""

    def __init__(self, directory: Path) -> None:
        self.job: Job = write_job(directory / "small")
        self.pack, self._path = packed(self.job), directory / "small.flpack"
        self.listener = Listener()
        self.lobby = Lobby(self.listener, lambda _: None)
        self.server = GrpcServer(self.lobby)
        self.connection = GrpcConnection(self.server.address)

    def offer(self, number: int) -> None:
        offer = JobOffer(
            id=f"small-{number}",
            name="small",
            contract=self.job.contract.to_json(),
            contract_fingerprint="",
            code_digest="",
            pack_digest=hashlib.sha256(self.pack).hexdigest(),
            pack_nbytes=len(self.pack),
        )
        self.lobby.offer(number, offer, self.job.contract, self._path)

    def join(self, name: str) -> tuple[str, list[TaskAssignment], Iterator[object]]:
        """Join, and return the session's secret, the offers up to the mark of their end, and the stream."""
        stream = self.connection.session(Join(name, "1", AgentJoinContent(version="").to_bytes()))
        welcome = next(stream)
        assert isinstance(welcome, Welcome)
        offers: list[TaskAssignment] = []
        for message in stream:
            if isinstance(message, Withdrawal):
                assert message.assignment_id == 0
                return welcome.session_secret, offers, stream
            assert isinstance(message, TaskAssignment)
            offers.append(message)
        raise AssertionError("the stream has ended")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.connection.close()
    made.server.close()


def test_an_agent_is_offered_the_jobs_that_invite_it_and_then_told_that_these_are_all(stage: Stage) -> None:
    stage.offer(7)
    secret, offers, stream = stage.join("north")
    assert [offer.assignment_id for offer in offers] == [7] and stage.listener.connected == {"north"}
    stage.offer(8)
    assert isinstance(offer := next(stream), TaskAssignment) and offer.assignment_id == 8
    stage.lobby.withdraw(7)
    assert next(stream) == Withdrawal(7)
    with refused("untimely"):
        list(stage.connection.download(DownloadRequest(secret, 7), offers[0].payload))
    stage.connection.report(Failure(secret, 8, "not\nsigned"))
    assert stage.listener.refusals == [(8, "north", "not\\nsigned")]
    with refused("untimely"):
        stage.connection.report(Failure(secret, 7, "too late"))


def test_an_agent_that_no_job_invites_is_offered_none(stage: Stage) -> None:
    stage.offer(7)
    secret, offers, _ = stage.join("east")
    assert offers == []
    with refused("untimely", "job 7 is not offered to it"):
        stage.connection.report(Failure(secret, 7, "no"))


def test_a_client_of_a_single_job_is_told_that_this_is_a_standing_federation(stage: Stage) -> None:
    stream = stage.connection.session(Join("north", "1", b'{"contract": "{}", "code_digest": "", "version": ""}'))
    said = "this server is a standing federation, and this is the client of a single job; start it without a job: "
    with refused("malformed", f"client 'north': {said}flcore client --kit KIT"):
        next(stream)


def test_a_join_that_is_none_names_the_version(stage: Stage) -> None:
    stream = stage.connection.session(Join("north", "1", b'{"kind": "agent", "more": 1}'))
    with refused("malformed", "the join is none of an agent's; use the version of flcore that the server has, "):
        next(stream)


def test_each_of_two_downloads_at_once_ends(stage: Stage) -> None:
    """A newer download takes the place of an older one, which is refused in every state and tries again."""
    stage.offer(7)
    stage.offer(8)
    for _ in range(30):
        secret, offers, stream = stage.join("north")
        received: list[bytes] = []

        def download(offer: TaskAssignment, secret: str = secret, received: list[bytes] = received) -> None:
            request = DownloadRequest(secret, offer.assignment_id)
            while True:
                try:
                    received.append(b"".join(stage.connection.download(request, offer.payload)))
                    return
                except Refused as error:
                    if error.kind != "superseded":
                        raise

        threads = [threading.Thread(target=download, args=(offer,), daemon=True) for offer in offers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(received) == 2, "a download hangs"
        stream.close()  # type: ignore[attr-defined]
