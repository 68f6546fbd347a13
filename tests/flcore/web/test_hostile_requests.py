"""Requests that want to break the page: many at once, malformed, with cookies of strangers, while a file grows."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from flcore.server.events import HistoryRestored
from flcore.server.history import Participation, RoundRecord
from flcore.web import RunSource, Token, WebServer, app, views
from tests.flcore.web.small_client import PageClient
from tests.flcore.web.synthetic_job import SyntheticJob

STREAM = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECRET = "a-token-of-twenty-characters"


@pytest.fixture(scope="module")
def job() -> SyntheticJob:
    return SyntheticJob()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def page(job: SyntheticJob, run: Path) -> Iterator[PageClient]:
    with WebServer(RunSource(job.board, job.contract, run)) as server:
        yield PageClient(server.url)


def status_of(sock: socket.socket) -> int:
    """Read the status of a reply, and a part of what follows."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = sock.recv(4096)
        assert part, head
        head += part
    return int(head.split()[1])


def test_streams_that_are_asked_for_at_once_are_bounded_too(page: PageClient) -> None:
    """The places that streams do not take are for the pages' other requests."""
    asked = app.MAX_STREAMS * 2
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(page.place, 60)) for _ in range(asked)]
        for sock in sockets:
            sock.sendall(STREAM)
        statuses = [status_of(sock) for sock in sockets]
        assert (statuses.count(200), statuses.count(503)) == (app.MAX_STREAMS, asked - app.MAX_STREAMS)
        assert page.get("/status.json").status == 200


def test_streams_that_have_ended_give_their_places_back(page: PageClient) -> None:
    for _ in range(app.MAX_STREAMS + 2):
        deadline = time.monotonic() + 60
        while True:  # the server notices the end of the last one a little later
            with socket.create_connection(page.place, 60) as sock:
                sock.sendall(STREAM)
                if status_of(sock) == 200:
                    break
            assert time.monotonic() < deadline


@pytest.mark.parametrize("size", [0, 3, 300_000, 1 << 20])
def test_a_file_that_grows_is_sent_as_long_as_it_was(page: PageClient, run: Path, size: int) -> None:
    """A server appends to its audit log while somebody downloads it."""
    written = bytes(range(256)) * 4096
    file = run / "audit.jsonl"
    file.write_bytes(written[:size])
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(page.place)
        path = b"/api/jobs/chest-xray/files/audit.jsonl"
        slow.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = slow.recv(100)
        with file.open("ab") as appended:
            appended.write(b"a later line\n" * 10_000)
        while part := slow.recv(1 << 16):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert body == written[:size]
    assert page.get(path.decode(), "HEAD").headers["Content-Length"] == str(file.stat().st_size)


def test_malformed_requests_leave_no_line_in_the_log(page: PageClient, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody who reaches the port could push the lines of the run out of a bounded log."""
    with caplog.at_level(logging.INFO):
        for request in (b"\x16\x03\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n"):
            assert page.raw(request).startswith(b"HTTP/1.1 400")
        assert page.get("/nothing").status == 404
    assert not [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("other", ["a[b]=1", '{"x":1}=2', "no value", 'a="open', "=x", "a=\xff", "flcore-page=1"])
def test_a_cookie_of_another_server_of_the_host_does_not_hide_that_of_the_page(other: str) -> None:
    """Browsers send the cookies of a host to all its ports, and other programs set odd ones."""
    token = Token(SECRET)
    cookie = token.cookie_header(is_secure=False).partition(";")[0]
    assert token.is_cookie(f"{other}; {cookie}") and token.is_cookie(f"{cookie}; {other}")
    assert not token.is_cookie(other)


def test_the_pages_of_two_servers_of_a_host_keep_their_cookies_apart() -> None:
    names = {Token(text).cookie_header(is_secure=True).partition("=")[0] for text in (SECRET, SECRET[::-1])}
    assert len(names) == 2


def test_a_hostile_cookie_takes_no_more_time_than_its_length() -> None:
    """16 KiB of quoted backslashes took 2 s of the page's thread, before any token was checked."""
    token = Token(SECRET)
    times = []
    for length in (1_000, 8_000):
        cookies = token.cookie_header(is_secure=False).partition("=")[0] + '="' + "\\\\" * length + '"'
        began = time.thread_time()
        for _ in range(20):
            assert not token.is_cookie(cookies)
        times.append(time.thread_time() - began)
    assert times[1] < 40 * max(times[0], 1e-3)  # eight times the length; the square would be 64 times the time


def test_replies_are_bounded_whatever_clients_report() -> None:
    """256 metrics of other names from each of 200 clients made a reply of 5 MB for each round."""
    flood = {f"clutter-{number}": 1.0 for number in range(256)}
    updates = {"evil": Participation(1.0, flood, 1, 1.0)}
    updates |= {f"good-{client}": Participation(1.0, {"loss": 0.5}, 1, 1.0) for client in range(5)}
    failed = {"train": {f"client-{number}": "x" * 5_000 for number in range(1_000)}}
    record = RoundRecord(1, tuple(updates), updates, failed, flood | {"loss": 0.5}, flood)
    line = views.rounds_view([record], 0)["rounds"][0]
    assert len(line["site_metrics"]) == 2 + views.MAX_METRICS and "loss" in line["site_metrics"]
    assert len(line["train"]) == len(line["validate"]) == views.MAX_METRICS and "loss" in line["train"]
    assert len(line["failed"]) == views.MAX_LEFT_OUT and line["left_out"] == 1_000
    assert max(len(reason) for _, _, reason in line["failed"]) == views.MAX_REASON_CHARACTERS


def test_a_long_history_comes_in_parts(page: PageClient, job: SyntheticJob) -> None:
    job.tell(HistoryRestored(tuple(job.record(number) for number in range(24, 3 * views.MAX_ROUNDS))))
    known: list[int] = []
    while rounds := page.get(f"/api/jobs/chest-xray/rounds?after={known[-1] if known else 0}").json()["rounds"]:
        sites = page.get(f"/api/jobs/chest-xray/sites?metric=loss&after={known[-1] if known else 0}").json()
        assert sites["rounds"] == [each["round"] for each in rounds] and len(rounds) <= views.MAX_ROUNDS
        known += sites["rounds"]
    assert known == list(range(1, 3 * views.MAX_ROUNDS))
