"""A lead over the real transport: plaintext and mutual TLS, a server that is restarted, and one that is away."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flcore_transport import Ask, ConnectionLost, GrpcServer, Identity, Refused, Reply

import flcore
from flcore.identity.names import Role
from flcore.identity.tls import FederationTls
from flcore.lead.connection import FederationConnection
from flcore.lead.profile import Profile, profiles_path, write_profile
from tests.flcore.lead.fake_server import FakeServer
from tests.flcore.lead.kits import federation_authority, unpacked_kit
from tests.flcore.lead.test_connection import write_job
from tests.transport.conftest import RecordingService


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def listen(server: FakeServer) -> Iterator[Callable[..., GrpcServer]]:
    """Serve the fake's answers. Its callers are kept in `callers`."""
    opened = list[GrpcServer]()

    def answer(identity: Identity | None, ask: Ask) -> Reply:
        server.callers.append(None if identity is None else (identity.name, str(identity.role)))
        if identity is not None and identity.role == Role.CLIENT:
            raise Refused("not-allowed", "expected a lead or an admin, got a client")
        return server.ask(ask)

    def start(port: int = 0, tls: FederationTls | None = None) -> GrpcServer:
        opened.append(GrpcServer(RecordingService(), port=port, answer=answer, tls=tls))
        return opened[-1]

    yield start
    for each in opened:
        each.close("the test is over")


def test_a_whole_life_in_plaintext(server: FakeServer, listen: Callable[..., GrpcServer], tmp_path: Path) -> None:
    server.part_bytes = 1_000
    with flcore.connect(server=listen().address, insecure=True) as federation:
        job = federation.submit(write_job(tmp_path / "line"))
        server.files[job.id] = {"server.log": bytes(range(256)) * 40}
        threading.Timer(0.3, server.update, [job.id], {"state": "done"}).start()
        assert job.wait(20).state == "done"
        job.download(tmp_path / "out")
        assert (tmp_path / "out/server.log").read_bytes() == bytes(range(256)) * 40
    assert set(server.callers) == {None}


def test_a_body_of_a_mebibyte_passes(server: FakeServer, listen: Callable[..., GrpcServer], tmp_path: Path) -> None:
    server.part_bytes = 1 << 20
    with flcore.connect(server=listen().address, insecure=True) as federation:
        job = federation.job(server.add_job())
        server.files[job.id] = {"run/model": bytes(range(251)) * 10_000}
        job.download(tmp_path / "out")
        assert (tmp_path / "out/run/model").read_bytes() == bytes(range(251)) * 10_000


def test_a_lead_is_known_by_its_kit(
    server: FakeServer, listen: Callable[..., GrpcServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    authority = federation_authority(tmp_path)
    address = listen(tls=FederationTls(authority.server_directory)).address.replace("127.0.0.1", "localhost")
    kit = unpacked_kit(authority, tmp_path)
    server.add_job()
    write_profile(profiles_path(), "default", Profile(kit=str(kit), server=address))
    with flcore.connect() as federation:
        assert federation.jobs()[0].id == "digits-1"
        assert repr(federation) == f"<FederationConnection to {address} as alice, lead of hospitals>"
    with (
        flcore.connect(kit=unpacked_kit(authority, tmp_path, "north", Role.CLIENT), server=address) as federation,
        pytest.raises(Refused, match=r"got a client \(this kit is that of north, client of hospitals\)"),
    ):
        federation.jobs()
    assert server.callers == [("alice", "lead"), ("north", "client")]


def test_following_outlives_a_restart_at_the_same_address(
    server: FakeServer, listen: Callable[..., GrpcServer]
) -> None:
    first, notices, got = listen(), list[str](), list[str]()
    port = int(first.address.rpartition(":")[2])
    job_id = server.add_job()
    with flcore.connect(server=first.address, insecure=True, notify=notices.append) as federation:
        job = federation.job(job_id)
        follower = threading.Thread(target=lambda: got.extend(job.follow_logs()))
        follower.start()
        server.log(job_id, b"one\n")
        server.part_bytes = 1_000
        first.leave()
        server.log(job_id, b"two\n")
        time.sleep(1.0)  # the outage
        listen(port)
        server.log(job_id, b"three\n")
        server.update(job_id, state="done")
        follower.join(20)
    assert "".join(got) == "one\ntwo\nthree\n"
    assert len(notices) == 1 and first.address in notices[0]


def test_a_server_that_is_away_is_one_error_with_its_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        flcore.connect(server=address, insecure=True) as federation,
        pytest.raises(ConnectionLost, match=f"{address} cannot be reached"),
    ):
        federation.jobs()


def test_the_limit_of_a_wait_cuts_its_call(server: FakeServer, listen: Callable[..., GrpcServer]) -> None:
    server.poll_s = 30.0
    job_id = server.add_job()
    with flcore.connect(server=listen().address, insecure=True) as federation:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="it is running; it goes on"):
            federation.job(job_id).wait(0.5)
        assert time.monotonic() - began < 15  # the server would have waited for thirty


def test_closing_from_another_thread_ends_a_wait(server: FakeServer, listen: Callable[..., GrpcServer]) -> None:
    job_id = server.add_job()
    federation = flcore.connect(server=listen().address, insecure=True)
    assert isinstance(federation, FederationConnection)
    threading.Timer(0.5, federation.close).start()
    with pytest.raises(ConnectionLost, match=r"gone|closed"):
        federation.job(job_id).wait()
