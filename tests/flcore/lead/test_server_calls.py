"""A lead's calls: repeated while the server is away, with one notice; refusals get advice."""

import threading
import time

import pytest
from flcore_transport import ConnectionLost, Refused, Reply, WrongServer

from flcore.federation.messages import JobDetails, JobList, JobSummary, ListJobs, ShowJob, WaitForJob
from flcore.job.messages import MalformedMessage
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer

ASK = ListJobs(states=[])


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def test_a_single_call_fails_at_once_with_the_address(server: FakeServer, calls: ServerCalls) -> None:
    server.fail_next()
    with pytest.raises(ConnectionLost, match=r"fl\.example\.org:8470 cannot be reached"):
        calls.call(ASK, JobList)
    assert len(server.requests) == 1


def test_a_server_that_is_away_is_waited_for_with_one_notice(
    server: FakeServer, calls: ServerCalls, notices: list[str]
) -> None:
    server.fail_next(40)
    calls.call_until_answered(ASK, JobList)
    assert len(server.requests) == 41
    assert len(notices) == 1 and "trying again until it answers" in notices[0]


def test_backoff_grows_and_a_transfer_gives_up(server: FakeServer) -> None:
    clock = Clock()
    calls = ServerCalls(server, clock=clock, sleep=clock.sleep)
    server.fail_next(1_000)
    told = r"^given up after 60 s of trying; the last error: fl\.example\.org:8470 cannot be reached: nothing listens"
    with pytest.raises(ConnectionLost, match=told):
        calls.call_until_answered(ASK, JobList, give_up_after_s=60)
    assert clock.now == pytest.approx(60)
    assert 15 < len(server.requests) < 40


def test_a_server_that_is_not_the_expected_one_is_not_asked_again(server: FakeServer, calls: ServerCalls) -> None:
    server.fail_next(1, WrongServer("its certificate is not trusted"))
    with pytest.raises(WrongServer, match="not trusted"):
        calls.call_until_answered(ASK, JobList, give_up_after_s=60)
    assert len(server.requests) == 1


def test_a_deadline_ends_the_wait_for_a_server_that_is_away(server: FakeServer) -> None:
    clock = Clock()
    calls = ServerCalls(server, clock=clock, sleep=clock.sleep)
    server.fail_next(1_000)
    with pytest.raises(TimeoutError, match=r"no answer of fl\.example\.org:8470 .*the last error: .*nothing listens"):
        calls.call_until_answered(ASK, JobList, deadline=7.0)
    assert clock.now == pytest.approx(7)


def test_a_call_is_cut_by_its_deadline(server: FakeServer) -> None:
    clock, allowed = Clock(), list[float | None]()

    def ask(_: object, timeout_s: float | None = None) -> Reply:
        allowed.append(timeout_s)
        clock.now += timeout_s or 0.0
        raise ConnectionLost("no reply in time")

    server.ask = ask  # type: ignore[method-assign, assignment]
    calls = ServerCalls(server, clock=clock, sleep=clock.sleep)
    with pytest.raises(TimeoutError):
        calls.call_until_answered(WaitForJob(id="a-1", state="queued"), JobList, timeout_s=50, deadline=7.0)
    assert allowed == [7.0]


def test_an_unknown_id_is_told_the_nearest_ones(server: FakeServer, calls: ServerCalls) -> None:
    for job in ("digits-1", "digits-12", "mri-3"):
        server.add_job(job)
    with pytest.raises(Refused, match=r"got 'digit-12'; did you mean digits-12 or digits-1\?") as raised:
        calls.call(ShowJob(id="digit-12"), JobDetails)
    assert raised.value.kind == "no-such-id"
    with pytest.raises(Refused, match="see `flcore list`"):
        calls.call(ShowJob(id="unlike-999"), JobDetails)


def test_an_unknown_id_is_told_also_if_the_list_cannot_be_had(server: FakeServer, calls: ServerCalls) -> None:
    server.fail_next(1, Refused("no-such-id", "expected the id of a job, got 'a-1'"))
    server.fail_next(1)
    with pytest.raises(Refused, match="got 'a-1'; see `flcore list`"):
        calls.call(ShowJob(id="a-1"), JobDetails)


def test_a_refusal_for_the_role_names_the_kit(server: FakeServer, calls: ServerCalls) -> None:
    server.fail_next(1, Refused("not-allowed", "expected a lead or an admin"))
    with pytest.raises(Refused, match=r"expected a lead or an admin \(this kit is that of alice, lead of hospitals\)"):
        calls.call(ASK, JobList)


def test_a_reply_of_another_version_says_so(server: FakeServer, calls: ServerCalls) -> None:
    server.ask = lambda *_: Reply(b'{"unknown": 1}')  # type: ignore[method-assign]
    with pytest.raises(MalformedMessage, match=r"the reply of fl.*use the version of flcore that the server has"):
        calls.call(ASK, JobList)


def test_closing_ends_the_wait_for_a_server_that_is_away(server: FakeServer) -> None:
    calls = ServerCalls(server)
    server.fail_next(1_000)
    threading.Timer(0.5, calls.close).start()
    began = time.monotonic()
    with pytest.raises(ConnectionLost):
        calls.call_until_answered(ASK, JobList)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["too-many-asks", "no-reply"])
def test_a_busy_server_is_asked_again(server: FakeServer, calls: ServerCalls, kind: str) -> None:
    server.fail_next(2, Refused(kind, "expected fewer calls at a time"))
    calls.call_until_answered(ASK, JobList)
    assert len(server.requests) == 3


def test_a_server_that_does_not_wait_is_not_asked_in_a_busy_loop(server: FakeServer) -> None:
    clock = Clock()
    calls = ServerCalls(server, clock=clock, sleep=clock.sleep)
    server.poll_s = 0.0
    request = WaitForJob(id=server.add_job(), state="running")
    with pytest.raises(TimeoutError):
        calls.wait_for_news(request, JobSummary, lambda found, _: found.state != "running", deadline=10.0)
    assert len(server.requests) <= 11


def test_the_advice_of_the_server_is_not_given_twice(server: FakeServer, calls: ServerCalls) -> None:
    server.fail_next(1, Refused("no-such-id", "expected the id of a job, got 'a-1'; see flcore list"))
    with pytest.raises(Refused, match=r"got 'a-1'; see `flcore list`$"):
        calls.call(ShowJob(id="a-1"), JobDetails)
