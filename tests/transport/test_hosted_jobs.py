"""Several jobs on one port: each has its own sessions and secrets, and ends alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from flcore_transport import (
    ConnectionLost,
    DownloadRequest,
    Failure,
    FromServer,
    Goodbye,
    GrpcConnection,
    GrpcServer,
    Join,
    Outbox,
    Refused,
    TaskAssignment,
    TlsKeys,
    TransportError,
    UploadRequest,
    Welcome,
    client_limits,
    flow_control,
    grpc_sessions,
)
from flcore_transport.client_limits import RateLimit
from flcore_transport.endpoint import Endpoint
from flcore_transport.framing import MAX_PIECE_BYTES
from flcore_transport.grpc_channel import TOO_MANY_CALLS
from flcore_transport.grpc_server import HostedJob
from flcore_transport.hosted_jobs import MAX_GOODBYES, HostedJobs
from flcore_transport.piece_format import PIECE_BODY_BYTES

from tests.transport.certificates import SERVER, TestAuthority
from tests.transport.conftest import MODEL, Pattern, RecordingService
from tests.transport.test_concurrent_transfers import Long
from tests.transport.test_grpc_tls import CommonNames, Link


class Federation:
    """A server with a first service and hosted jobs, over TLS or in plaintext, and connections to it."""

    def __init__(self, tls: str) -> None:
        self.authority = TestAuthority() if tls == "tls" else None
        self.tls = CommonNames(self.authority.issue("the server", SERVER)) if self.authority else None
        self.first, self.services = RecordingService(), dict[str, RecordingService]()
        self.server = GrpcServer(self.first, tls=self.tls, in_flight_bytes=32 * PIECE_BODY_BYTES)
        self.issued: dict[str, TlsKeys] = {}
        self.opened: list[GrpcConnection] = []
        self.sessions: list[Iterator[FromServer]] = []

    def host(self, job: str) -> HostedJob:
        self.services[job] = RecordingService()
        return self.server.host(job, self.services[job])

    def connect(self, job: str = "", client: str = "north") -> GrpcConnection:
        keys = self.issued.setdefault(client, self.authority.issue(client)) if self.authority else None
        self.opened.append(GrpcConnection(self.server.address, keys=keys, job=job))
        return self.opened[-1]

    def join(self, job: str = "", client: str = "north", instance: str = "1") -> tuple[str, Iterator[FromServer]]:
        """Join for good; return the session's secret and its stream."""
        session = self.connect(job, client).session(Join(client, instance))
        self.sessions.append(session)
        welcome = next(session)
        assert isinstance(welcome, Welcome)
        return welcome.session_secret, session

    def pieces(self, job: str, secret: str) -> int:
        return len(list(self.connect(job).download(DownloadRequest(secret, 1))))

    def refusal_of_join(self, job: str) -> tuple[str, str]:
        with pytest.raises(Refused) as caught:
            next(self.connect(job).session(Join("north", "1")))
        return caught.value.kind, str(caught.value)


@pytest.fixture(params=["plaintext", "tls"])
def federation(request: pytest.FixtureRequest) -> Iterator[Federation]:
    made = Federation(request.param)
    yield made
    for connection in made.opened:
        connection.close()
    made.server.close("the test is over")


def test_one_name_in_two_jobs_is_two_clients(federation: Federation) -> None:
    jobs = ["", "a-1", "b-1"]
    for job in jobs[1:]:
        assert federation.host(job).address == federation.server.address
    held = {job: federation.join(job, instance=job) for job in jobs}
    assert len({secret for secret, _ in held.values()}) == 3
    for job, service in zip(jobs, [federation.first, *federation.services.values()], strict=True):
        secret, session = held[job]
        service.connected["north"].send(TaskAssignment(1, job.encode(), MODEL))
        message = next(session)
        assert isinstance(message, TaskAssignment) and message.content == job.encode()
        assert federation.pieces(job, secret) == 4
        connection = federation.connect(job)
        request = UploadRequest(secret, 1, job.encode(), MODEL)
        assert connection.upload(request, Outbox(Pattern())).assignment_id == 1
        connection.report(Failure(secret, 2, job))
        assert service.contents == [job.encode()] and service.failures == [("north", 2, job)]


def test_transfers_of_one_job_do_not_end_those_of_another(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_control, "YIELD_AFTER_S", 600.0)
    for job in ("a-1", "b-1"):
        federation.host(job)
        federation.services[job].source = Long()
    running = {}
    for job in ("a-1", "b-1"):
        secret, _ = federation.join(job)
        running[job] = federation.connect(job).download(DownloadRequest(secret, 1))
        next(running[job])
    federation.services["a-1"].connected["north"].cancel_transfers(1)
    with pytest.raises((Refused, ConnectionLost)):
        list(running["a-1"])
    assert len(list(running["b-1"])) > 4


@pytest.mark.parametrize(("mine", "other"), [("a-1", "b-1"), ("a-1", ""), ("", "a-1")])
def test_a_secret_of_one_job_is_refused_in_another(federation: Federation, mine: str, other: str) -> None:
    for job in ("a-1", "b-1"):
        federation.host(job)
    secret, _ = federation.join(mine)
    federation.join(other)
    with pytest.raises(Refused, match="join again") as caught:
        federation.pieces(other, secret)
    assert caught.value.kind == "unknown-session"
    with pytest.raises(Refused, match="join again"):
        federation.connect(other).report(Failure(secret, 1, "x"))
    with pytest.raises(Refused, match="join again"):
        federation.connect(other).upload(UploadRequest(secret, 1, b"", MODEL), Outbox(Pattern()))
    assert not [service for service in federation.services.values() if service.contents or service.failures]


def test_a_job_ends_alone_and_clients_that_come_late_learn_why(federation: Federation) -> None:
    ending, failing = federation.host("a-1"), federation.host("b-1")
    federation.host("c-1")
    lobby, (_, of_a), (secret_a, _) = federation.join(), federation.join("a-1"), federation.join("a-1", "south")
    of_b, (secret_c, of_c) = federation.join("b-1")[1], federation.join("c-1")
    reading = [threading.Thread(target=lambda: said.extend(of_a)), threading.Thread(target=lambda: said.extend(of_b))]
    said: list[FromServer] = []
    for thread in reading:
        thread.start()
    federation.opened[2].close()  # south is away, and comes back too late
    ending.close("all done")
    failing.close("no quorum", failed=True)
    ending.close("again")
    ending.leave()
    for thread in reading:
        thread.join(10)
    assert said == [Goodbye("all done"), Goodbye("no quorum", failed=True)]
    federation.services["a-1"].wait_until(lambda: not federation.services["a-1"].connected)
    assert federation.refusal_of_join("a-1") == ("over", "all done")
    assert federation.refusal_of_join("b-1") == ("failed", "no quorum")
    with pytest.raises(Refused, match="all done") as caught:
        federation.pieces("a-1", secret_a)
    assert caught.value.kind == "over"
    assert not federation.services["a-1"].refused_joins and not federation.first.refused_calls
    # The others go on.
    assert federation.pieces("c-1", secret_c) == federation.pieces("", lobby[0]) == 4
    federation.services["c-1"].connected["north"].send(TaskAssignment(7, b""))
    assert next(of_c) == TaskAssignment(7, b"")


def test_a_job_is_refused_until_it_is_hosted_and_again_after_it_was_left(federation: Federation) -> None:
    assert federation.refusal_of_join("a-1") == (
        "no-such-job",
        "the server does not run the job 'a-1' now; it may begin later",
    )
    job = federation.host("a-1")
    secret, session = federation.join("a-1")
    with pytest.raises(ValueError, match="not hosted yet, got 'a-1'"):
        federation.host("a-1")
    with pytest.raises(ValueError, match="expected the id of a job"):
        federation.host("")
    job.leave()
    job.leave()
    job.close("too late")
    with pytest.raises(ConnectionLost, match="the server has left this job"):
        next(session)
    assert federation.refusal_of_join("a-1")[0] == "no-such-job"
    with pytest.raises(Refused, match="does not run the job"):
        federation.pieces("a-1", secret)
    assert not federation.first.refused_calls and not federation.first.refused_joins
    federation.host("a-1")
    with pytest.raises(Refused, match="join again"):
        federation.pieces("a-1", secret)
    secret, _ = federation.join("a-1")
    assert federation.pieces("a-1", secret) == 4


def test_a_left_job_ends_its_transfers_and_their_clients_may_call_again(federation: Federation) -> None:
    job = federation.host("a-1")
    federation.services["a-1"].source = Long()
    secret, _ = federation.join("a-1")
    pieces = federation.connect("a-1").download(DownloadRequest(secret, 1))
    next(pieces)
    job.leave()
    with pytest.raises(ConnectionLost):
        list(pieces)


def test_a_job_does_not_wait_long_for_a_client_that_does_not_read(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flcore_transport")
    monkeypatch.setattr(grpc_sessions, "GOODBYE_TIMEOUT_S", 0.5)
    job, service = federation.host("a-1"), federation.services["a-1"]
    _, session = federation.join("a-1")
    for number in range(40):  # 40 MB, of which its socket takes some
        service.connected["north"].send(TaskAssignment(number + 1, bytes(1 << 20)))
    began_at = time.monotonic()
    job.close("all done")
    assert time.monotonic() - began_at < 10
    service.wait_until(lambda: not service.connected)
    assert "does not read its goodbye: its connection is shut down" in caplog.text
    with suppress(TransportError):
        list(session)
    assert federation.refusal_of_join("a-1") == ("over", "all done")


def test_a_server_that_closes_leaves_its_jobs(federation: Federation) -> None:
    federation.host("a-1")
    (_, lobby), (_, session) = federation.join(), federation.join("a-1")
    said: list[FromServer] = []
    reading = threading.Thread(target=lambda: said.extend(lobby))
    reading.start()
    federation.server.close("the federation is over")
    reading.join(10)
    assert said == [Goodbye("the federation is over")]
    with pytest.raises(ConnectionLost):
        next(session)
    with pytest.raises(TransportError, match="is closed, and hosts no more jobs"):
        federation.host("b-1")


def test_revoked_certificates_end_the_sessions_of_all_jobs() -> None:
    federation = Federation("tls")
    assert federation.tls is not None
    for job in ("a-1", "b-1"):
        federation.host(job)
    sessions = [federation.join(job)[1] for job in ("", "a-1", "b-1")]
    secret, _ = federation.join("b-1", "south")
    fingerprint = federation.tls.fingerprint_of(federation.issued["north"])
    federation.tls.revoked.add(fingerprint)
    for session in sessions:
        with pytest.raises(Refused, match="revoked"):
            list(session)
    for service in (federation.first, *federation.services.values()):
        service.wait_until(lambda service=service: "north" not in service.connected)  # type: ignore[misc]
        assert service.refused_certificates == [("north", fingerprint, "this certificate is revoked")]
    assert len(list(federation.connect("b-1", "south").download(DownloadRequest(secret, 1)))) == 4
    federation.server.close("the test is over")


def test_calls_and_joins_are_limited_in_each_job_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "MAX_CALLS_PER_CLIENT", 2)
    federation = Federation("tls")
    monkeypatch.setattr(federation.server._limits, "joins", RateLimit(burst=1, per_s=0.0))
    for job in ("a-1", "b-1"):
        federation.host(job)
        secret, _ = federation.join(job)
        federation.services[job].source = Long()
        pieces = federation.connect(job).download(DownloadRequest(secret, 1))
        next(pieces)
        with pytest.raises(TransportError, match="too many calls"):
            federation.connect(job).report(Failure(secret, 1, "x"))
        federation.sessions.append(pieces)  # type: ignore[arg-type]
    for connection in federation.opened:
        connection.close()
    federation.server.close("the test is over")


def test_a_flood_of_calls_for_jobs_that_do_not_exist_is_not_reported(federation: Federation) -> None:
    secret, _ = federation.join()
    connection = federation.connect("x" * 3000)
    errors = list[TransportError]()
    for _ in range(60):
        with pytest.raises(TransportError) as caught:
            connection.report(Failure(secret, 1, "x"))
        errors.append(caught.value)
    told = [error for error in errors if isinstance(error, Refused)]
    assert {error.kind for error in told} == {"no-such-job"} and all(len(str(error)) < 200 for error in told)
    if federation.tls is None:
        assert len(told) == 60
    else:
        assert 20 <= len(told) < 40 and any(TOO_MANY_CALLS in str(error) for error in errors)
    assert not federation.first.refused_calls
    with pytest.raises(Refused, match="join again"):  # their refusals do not use up those of other calls
        federation.connect().report(Failure("made up", 1, "x"))


def test_a_join_that_was_on_its_way_when_its_job_was_left_is_refused() -> None:
    """The call has found the endpoint already, and would open a session that nobody ends."""
    service, links = RecordingService(), [Link(), Link()]
    endpoint = Endpoint(service, "a-1")
    session = endpoint.join(Join("north", "1"), links[0])
    assert endpoint.leave_job() and not endpoint.leave_job() and not endpoint.close("too late")
    kinds = list[str]()
    for client in ("south", "north"):
        with pytest.raises(Refused, match="does not run the job 'a-1' now") as caught:
            endpoint.join(Join(client, "1"), links[1])
        kinds.append(caught.value.kind)
    with pytest.raises(Refused, match="does not run the job 'a-1' now") as caught:
        endpoint.find_session(session.secret)
    assert {*kinds, caught.value.kind} == {"no-such-job"}
    assert [str(error) for error in links[0].errors] == ["the server has left this job"] and not links[1].errors
    assert list(service.connected) == ["north"] and not service.refused_joins and endpoint.farewell is None


def test_goodbyes_are_kept_for_the_last_jobs() -> None:
    jobs = HostedJobs(Endpoint(RecordingService()))
    for number in range(MAX_GOODBYES + 1):
        endpoint = jobs.host(f"a-{number}", RecordingService())
        endpoint.close(f"done {number}")
        with pytest.raises(ValueError, match="not hosted yet"):
            jobs.host(f"a-{number}", RecordingService())
        jobs.remove(endpoint)
    endpoint, kinds = jobs.host("other", RecordingService()), []
    endpoint.leave_job()
    jobs.remove(endpoint)
    for number in (0, 1, MAX_GOODBYES):
        with pytest.raises(Refused) as caught:
            jobs.find(f"a-{number}")
        kinds.append(caught.value.kind)
    assert kinds == ["no-such-job", "over", "over"]
    assert jobs.endpoints() == [jobs.first] and jobs.find("") is jobs.first
    again = jobs.host("a-1", RecordingService())
    assert jobs.find("a-1") is again
    jobs.remove(Endpoint(RecordingService(), "a-1"))  # an older one of this job: nothing changes
    assert jobs.hosted() == [again]


def test_an_assignment_that_cannot_be_sent_fails_and_its_session_goes_on(federation: Federation) -> None:
    federation.host("digits-1")
    service = federation.services["digits-1"]
    _, session = federation.join("digits-1")
    link = service.connected["north"]
    link.send(TaskAssignment(1, bytes(MAX_PIECE_BYTES + 1)))
    link.send(TaskAssignment(2, b"small"))
    assert next(session) == TaskAssignment(2, b"small")
    service.wait_until(lambda: bool(service.failures))
    ((client, number, reason),) = service.failures
    assert (client, number) == ("north", 1)
    assert "expected an assignment of at most 4,194,304 bytes, got" in reason
