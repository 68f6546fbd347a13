"""The page's server over HTTP: read-only, for its own hosts and token alone, bounded, and never in a run's way."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from flcore.server.events import AnswerRefused, ClientJoined, HistoryRestored, RunEnded, TaskSent
from flcore.server.history import Participation, RoundRecord
from flcore.status import StatusBoard
from flcore.web import RunSource, Token, WebServer, app, connections, feeds
from flcore.web.views import job_view
from tests.flcore.web.small_client import PageClient, until
from tests.flcore.web.synthetic_job import SyntheticJob, large_job

DATA_PATHS = (
    "/status.json",
    "/api/events",
    "/api/jobs/chest-xray/timeline?round=23",
    "/api/jobs/chest-xray/rounds",
    "/api/jobs/chest-xray/sites?metric=loss",
    "/api/jobs/chest-xray/contract",
    "/api/jobs/chest-xray/files",
    "/api/jobs/chest-xray/files/history.jsonl",
)
PATHS = (*app.PAGE_FILES, "/api/login", *DATA_PATHS, "/nothing")
SECRET = "a-token-of-twenty-characters"


@pytest.fixture(scope="module")
def job() -> SyntheticJob:
    return SyntheticJob()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "history.jsonl").write_text("the history\n")
    (directory / "state.sqlite").write_text("secret")
    return directory


@pytest.fixture(scope="module")
def page(job: SyntheticJob, run: Path) -> Iterator[PageClient]:
    with WebServer(RunSource(job.board, job.contract, run)) as server:
        yield PageClient(server.url)


@pytest.fixture(scope="module")
def guarded(job: SyntheticJob) -> Iterator[PageClient]:
    """A page that needs a token."""
    with WebServer(RunSource(job.board, job.contract, None), token=Token(SECRET)) as server:
        yield PageClient(server.url)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/api/events"])
def test_each_reply_forbids_browsers_all_that_the_page_does_not_need(page: PageClient, path: str) -> None:
    reply = page.get(path)
    assert reply.status == (404 if path == "/nothing" else 204 if path == "/api/login" else 200)
    assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
    assert "unsafe" not in reply.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in reply.headers and "Server" not in reply.headers
    assert reply.headers["Cache-Control"] == ("no-cache" if path in app.PAGE_FILES else "no-store")
    head = page.get(path, "HEAD")
    assert (head.status, head.body) == (reply.status, b"")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "MKCOL", "get"])
def test_other_methods_than_get_and_head_are_refused_everywhere(page: PageClient, path: str, method: str) -> None:
    reply = page.get(path, method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_a_head_of_the_stream_ends(page: PageClient) -> None:
    reply = page.get("/api/events", "HEAD")
    assert (reply.status, reply.headers["Content-Type"].split(";")[0]) == (200, "text/event-stream")


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_script(page: PageClient) -> None:
    for path in app.PAGE_FILES:
        text = page.get(path).body.decode()
        assert "https://" not in text and "//cdn" not in text, path
        assert text.count("http://") == text.count("http://www.w3.org/2000/svg"), path
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))
    html = page.get("/").body.decode()
    assert html.count("<script") == html.count('<script type="module" src="/') == 1
    assert "style=" not in html and "<style" not in html and "onclick" not in html


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]:80"]
)
def test_a_foreign_host_is_refused(page: PageClient, host: str) -> None:
    """Else a page of a stranger could read this one, under a name that points to 127.0.0.1 (DNS rebinding)."""
    for path in ("/", "/status.json"):
        assert page.get(path, Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8480"])
def test_the_own_hosts_are_served_with_any_port(page: PageClient, host: str) -> None:
    """A tunnel has another port."""
    assert page.get("/status.json", Host=host).status == 200


def test_requests_without_one_host_are_refused(page: PageClient) -> None:
    for head in ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"):
        assert page.raw(head.encode()).split()[1] in (b"400", b"421")
    two = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert page.raw(two).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("path", DATA_PATHS)
def test_without_the_token_there_is_no_data(guarded: PageClient, path: str) -> None:
    cookie = guarded.get("/api/login", Authorization=f"Bearer {SECRET}").headers["Set-Cookie"].partition(";")[0]
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": SECRET},
        {"Authorization": "Bearer "},
        {"Cookie": "flcore-page="},
        {"Cookie": f"flcore-page={SECRET}"},
        {"Cookie": f"other={cookie.partition('=')[2]}"},
        {"Cookie": f"{cookie}0"},
    )
    for headers in wrong:
        reply = guarded.get(path, "HEAD", **headers)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer"), headers
        assert guarded.get(f"{path}{'&' if '?' in path else '?'}token={SECRET}", "HEAD").status == 401
    for headers in ({"Authorization": f"Bearer {SECRET}"}, {"Cookie": f"a=b; {cookie}"}):
        assert guarded.get(path, "HEAD", **headers).status in (200, 404), headers


def test_a_login_gives_a_cookie_that_no_script_reads_and_that_is_not_the_token(guarded: PageClient) -> None:
    assert guarded.get("/api/login", Authorization="Bearer wrong").status == 401
    reply = guarded.get("/api/login", Authorization=f"Bearer {SECRET}")
    assert reply.status == 204 and SECRET not in reply.headers["Set-Cookie"]
    assert reply.headers["Set-Cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert Token(SECRET).cookie_header(is_secure=True).endswith("; Secure")
    assert Token(SECRET).cookie_header(is_secure=True).startswith(reply.headers["Set-Cookie"])  # after a restart, too


def test_the_files_of_the_page_need_no_token_and_hold_no_data(guarded: PageClient) -> None:
    for path in app.PAGE_FILES:
        reply = guarded.get(path)
        assert reply.status == 200 and b"chest-xray" not in reply.body


def test_what_clients_control_is_data_and_nothing_else() -> None:
    evil = "</script><img src=x onerror=alert(1)>\n\ndata: {}\n\x00"
    job = SyntheticJob()
    job.tell(ClientJoined(evil, 1), TaskSent(evil, 25, 1, (evil,), "m"))
    job.tell(AnswerRefused(evil, evil, 25, 1, evil, evil))
    record = RoundRecord(26, (evil,), {evil: Participation(1.0, {evil: float("nan")}, 1, 1.0)}, {evil: {evil: evil}})
    record.train, record.skipped = {evil: float("inf")}, evil
    job.tell(HistoryRestored((record,)))
    with WebServer(RunSource(job.board, job.contract, None)) as server:
        page = PageClient(server.url)
        for path in ("/status.json", "/api/jobs/chest-xray/rounds?after=24", "/api/jobs/chest-xray/timeline?round=25"):
            reply = page.get(path)
            assert reply.headers["Content-Type"] == "application/json" and reply.json()
            assert b"\x00" not in reply.body and b"NaN" not in reply.body and b"Infinity" not in reply.body
        with page.states("chest-xray") as states:
            assert next(states)["job"]["last_refusals"][-1]["client"].startswith("</script>")


def test_the_stream_begins_with_the_state_and_goes_on_with_each_change(page: PageClient, job: SyntheticJob) -> None:
    with page.states("chest-xray") as states:
        first = next(states)
        assert [line["key"] for line in first["jobs"]] == ["chest-xray"] and first["sites"] == []
        assert first["job"]["round"] == 24 and "last_rounds" not in first["job"]
        phases = {client["name"]: client["phase"] for client in first["job"]["clients"]}
        assert phases["st-marys"] == "refused" and phases["geneva"] == "lost" and phases["mayo-east"] == "training"
        job.tell(ClientJoined("late", 12))
        late = until(states, lambda state: any(each["name"] == "late" for each in state["job"]["clients"]))
        assert late["job"]["connected"] == 12


def test_the_views_are_those_of_the_board(page: PageClient, job: SyntheticJob) -> None:
    records = job.board.records()
    rounds = page.get("/api/jobs/chest-xray/rounds?after=20").json()["rounds"]
    assert [each["round"] for each in rounds] == [21, 22, 23]
    for shown, record in zip(rounds, records[20:], strict=True):
        assert shown["validate"] == pytest.approx(record.validate, rel=1e-5)
        assert (shown["updates"], shown["bytes_received"]) == (len(record.updates), record.bytes_received)
        assert shown["failed"] == [
            [client, task, reason] for task, each in record.failed.items() for client, reason in each.items()
        ]
    sites = page.get("/api/jobs/chest-xray/sites?metric=accuracy").json()
    for client in ("aarhus", "dresden"):
        values = [
            record.updates[client].metrics["accuracy"] if client in record.updates else None for record in records
        ]
        assert sites["sites"][client] == [None if each is None else float(f"{each:.6g}") for each in values]
    view = page.get("/api/jobs/chest-xray/timeline?round=23").json()
    spans = [
        (view["clients"][client], view["tasks"][task], view["phases"][phase], view["begin_s"] + begin)
        for client, task, phase, begin, _ in view["spans"]
    ]
    expected = [(phase.client, phase.task, phase.phase, phase.begin_s) for phase in job.board.timeline(23)]
    assert [span[:3] for span in spans] == [span[:3] for span in expected]
    assert [span[3] for span in spans] == pytest.approx([span[3] for span in expected], abs=1e-3)
    assert page.get("/api/jobs/chest-xray/contract").body.decode() == job.contract.to_json()
    status = page.get("/status.json").json()["jobs"][0]
    assert status["last_refusals"] == [each.to_json() for each in job.board.snapshot().last_refusals]


class RefusedBetween(RunSource):
    """A source that refuses an answer while a state is made: after one value was read, and before the next."""

    events: list[AnswerRefused]
    observe: Callable[[AnswerRefused], None]

    def _refuse(self) -> None:
        if self.events:
            self.observe(self.events.pop())

    def board(self, key: str) -> StatusBoard | None:
        self._refuse()
        return super().board(key)


def test_a_client_that_the_timeline_shows_as_refused_has_its_reason() -> None:
    job = SyntheticJob()
    source = RefusedBetween(job.board, job.contract, None)
    source.events = [AnswerRefused("train", "mayo-east", job.present, 1, "non-finite", "element 7 is nan")]
    source.observe = job.tell
    state = job_view(source, "chest-xray")
    assert state is not None
    timeline = state["timeline"]
    last = {timeline["clients"][client]: timeline["phases"][phase] for client, _, phase, _, _ in timeline["spans"]}
    reasons = {client["name"]: client["last_reason"] for client in state["clients"]}
    assert last["mayo-east"] == "refused" and reasons["mayo-east"] == "element 7 is nan"


def test_only_files_that_are_named_can_be_downloaded(page: PageClient) -> None:
    assert page.get("/api/jobs/chest-xray/files").json() == {"files": [["history.jsonl", 12]]}
    reply = page.get("/api/jobs/chest-xray/files/history.jsonl")
    assert reply.body == b"the history\n"
    assert reply.headers["Content-Disposition"] == 'attachment; filename="chest-xray-history.jsonl"'
    for name in ("state.sqlite", "results.json", "..%2fstate.sqlite", "%2e%2e/state.sqlite", "", "."):
        assert page.get(f"/api/jobs/chest-xray/files/{name}").status == 404, name
    assert page.get("/api/jobs/other/files/history.jsonl").status == 404
    assert page.get("/api/jobs/chest-xray/timeline?round=x").status == 400
    assert page.get(f"/api/jobs/chest-xray/rounds?after={'9' * 5_000}").status == 400


def test_a_reader_that_takes_nothing_holds_nobody_and_then_gets_the_newest_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feeds, "INTERVAL_S", 0.01)
    monkeypatch.setattr(feeds, "MAX_SHARE", 1.0)
    job = large_job()
    with WebServer(RunSource(job.board, job.contract, None)) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        page = PageClient(server.url)
        slow.connect(page.place)
        slow.sendall(b"GET /api/events?job=chest-xray HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow.recv(100)
        with page.states("chest-xray") as quick:
            for number in range(40):
                before = time.monotonic()
                job.tell(ClientJoined(f"new-{number}", 300 + number))
                assert time.monotonic() - before < 5.0
                until(quick, lambda state, count=300 + number: state["job"]["connected"] == count)  # type: ignore[misc]
        received = b""
        while b'"connected":339' not in received:
            part = slow.recv(1 << 20)
            assert part, "the stream has ended"
            received += part
        assert received.count(b"data: {") < 40  # it has missed states


def test_a_connection_that_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(feeds, "INTERVAL_S", 0.01)
    monkeypatch.setattr(feeds, "MAX_SHARE", 1.0)
    job = large_job()
    with WebServer(RunSource(job.board, job.contract, None)) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(PageClient(server.url).place)
        slow.sendall(b"GET /api/events?job=chest-xray HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until_s = time.monotonic() + 60
        with pytest.raises(OSError):  # a reset, or a broken pipe
            while time.monotonic() < until_s:
                job.board.wake()
                job.tell(ClientJoined("again", int(time.monotonic() * 1000) % 100_000))
                slow.send(b"x")
                time.sleep(0.02)


def test_connections_are_bounded(job: SyntheticJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with WebServer(RunSource(job.board, job.contract, None)) as server, ExitStack() as stack:
        page = PageClient(server.url)
        silent = [stack.enter_context(socket.create_connection(page.place, 60)) for _ in range(12)]
        closed = [each for each in silent if has_ended(each)] if wait_for_ends(silent, 4) else []
        assert len(closed) == 4
        for each in silent[:4]:
            each.close()
        assert retried(lambda: page.get("/status.json").status) == 200


def wait_for_ends(sockets: list[socket.socket], count: int) -> bool:
    """Wait until so many peers have closed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        readable, _, _ = select.select(sockets, [], [], 0.1)
        if len(readable) >= count:
            return True
    return False


def has_ended(sock: socket.socket) -> bool:
    """Whether the peer has closed a connection on which it has sent nothing."""
    return bool(select.select([sock], [], [], 0)[0])


def retried(ask: Callable[[], int]) -> int:
    """Return a reply, when the server has noticed that others have gone."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_connection_without_a_whole_request_ends(
    job: SyntheticJob, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT_S", 0.2)
    with WebServer(RunSource(job.board, job.contract, None)) as server:
        page = PageClient(server.url)
        with socket.create_connection(page.place, 60) as silent:
            silent.sendall(sent)
            assert wait_for_ends([silent], 1)
        assert page.get("/status.json").status == 200


def test_streams_are_bounded(job: SyntheticJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_STREAMS", 2)
    with WebServer(RunSource(job.board, job.contract, None)) as server, ExitStack() as stack:
        page = PageClient(server.url)
        for _ in range(2):
            next(stack.enter_context(page.states()))
        connection = HTTPConnection(*page.place, timeout=60)
        connection.request("GET", "/api/events")
        assert connection.getresponse().status == 503
        connection.close()
        assert page.get("/status.json").status == 200


def test_an_end_is_the_last_state_of_the_stream_and_no_thread_is_left(job: SyntheticJob) -> None:
    ended = SyntheticJob()
    before = {thread.name for thread in threading.enumerate()}
    server = WebServer(RunSource(ended.board, ended.contract, None))
    with server, PageClient(server.url).states("chest-xray") as states:
        next(states)
        ended.tell(RunEnded("the disk is full", failed=True, end="interrupted", cause="No space left on device"))
        server.close()
        last = list(states)[-1]["job"]
        assert (last["state"], last["reason"]) == ("interrupted", "No space left on device")
    assert not {name for name in {thread.name for thread in threading.enumerate()} - before if "flcore-web" in name}


def test_an_error_of_the_source_ends_neither_the_page_nor_the_run(
    job: SyntheticJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feeds, "ERROR_DELAY_S", 0.05)
    board = SyntheticJob().board
    is_broken = threading.Event()

    class Broken(RunSource):
        def job(self, key: str):  # type: ignore[no-untyped-def]
            if is_broken.is_set():
                raise OSError("the disk is gone")
            return super().job(key)

    with WebServer(Broken(board, job.contract, None)) as server:
        page = PageClient(server.url)
        with page.states("chest-xray") as states:
            next(states)
            is_broken.set()
            board.observe(ClientJoined("first", 40))
            deadline = time.monotonic() + 60
            while "the disk is gone" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)
            is_broken.clear()
            board.observe(ClientJoined("second", 41))
            assert until(states, lambda state: state["job"]["connected"] == 41)
    assert len([record for record in caplog.records if record.name == "flcore.web.feeds"]) == 1


def test_observers_wait_for_nobody_who_looks(job: SyntheticJob) -> None:
    board = SyntheticJob().board
    with WebServer(RunSource(board, job.contract, None)) as server, ExitStack() as stack:
        for _ in range(8):
            next(stack.enter_context(PageClient(server.url).states("chest-xray")))
        assert isinstance(board, StatusBoard)
        began = time.thread_time()
        for number in range(10_000):
            board.observe(ClientJoined("again", number))
        assert time.thread_time() - began < 10_000 * 200e-6


@pytest.mark.serial
def test_a_page_that_is_watched_costs_at_most_one_percent_of_a_core() -> None:
    """The thread that makes the states of 200 clients, while events come all the time. Sending them is extra."""
    job = large_job()
    with (
        WebServer(RunSource(job.board, job.contract, None)) as server,
        PageClient(server.url).states("chest-xray") as states,
    ):
        next(states)
        maker = [each for each in threading.enumerate() if each.name == "flcore-web-states"][-1]
        begin, used = time.monotonic(), thread_seconds(maker)
        count = 0
        while time.monotonic() - begin < 8.0:
            job.tell(ClientJoined("again", count))
            count += 1
            next(states)
        assert count >= 2
        assert thread_seconds(maker) - used <= 0.01 * (time.monotonic() - begin)


def thread_seconds(thread: threading.Thread) -> float:
    """Return the processor's time that a thread has taken."""
    fields = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
    return int(fields[0]) / 1e9
