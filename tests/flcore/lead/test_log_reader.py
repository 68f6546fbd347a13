"""Logs: read as far as they are, or followed to the job's end, over restarts of the server."""

import threading

import pytest
from flcore_transport import Refused

from flcore.federation.messages import ReadLog
from flcore.lead.log_reader import follow_log, read_log
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer

TEXT = "round 1/20: änderung 😀\n"


def test_a_log_is_read_as_far_as_it_is_written(server: FakeServer, calls: ServerCalls) -> None:
    job = server.add_job()
    assert "".join(read_log(calls, job)) == ""
    server.log(job, TEXT.encode())
    server.log(job, b"of north", "north")
    assert "".join(read_log(calls, job)) == TEXT  # parts of 4 bytes cut characters
    assert "".join(read_log(calls, job, "north")) == "of north"


def test_a_followed_log_ends_with_the_job(server: FakeServer, calls: ServerCalls) -> None:
    job = server.add_job()
    server.log(job, TEXT.encode())
    got, has_first = list[str](), threading.Event()

    def follow() -> None:
        for part in follow_log(calls, job):
            got.append(part)
            if "".join(got) == TEXT:
                has_first.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert has_first.wait(10)
    server.log(job, b"last\xff\n")
    server.update(job, state="done")
    follower.join(10)
    assert not follower.is_alive()
    assert "".join(got) == TEXT + "last\N{REPLACEMENT CHARACTER}\n"


def test_following_waits_at_the_server_and_does_not_poll(server: FakeServer, calls: ServerCalls) -> None:
    job = server.add_job()
    threading.Timer(1.0, server.update, [job], {"state": "done"}).start()
    assert list(follow_log(calls, job)) == []
    assert server.count(ReadLog) == 1


def test_a_restart_of_the_server_costs_no_line_and_one_notice(
    server: FakeServer, calls: ServerCalls, notices: list[str]
) -> None:
    job = server.add_job(state="done")
    server.log(job, TEXT.encode() * 5)
    parts = follow_log(calls, job)
    got = next(parts)
    server.fail_next(9)
    assert got + "".join(parts) == TEXT * 5
    assert len(notices) == 1


def test_a_log_of_an_unknown_job_is_refused(calls: ServerCalls) -> None:
    with pytest.raises(Refused, match="expected the id of a job, got 'x-1'"):
        next(follow_log(calls, "x-1"))
