"""Downloads: whole or not at all, resumed, checked, never outside the directory, nothing overwritten silently."""

import fcntl
import hashlib
import os
import random
from pathlib import Path

import pytest
from flcore_transport import ConnectionLost, Reply

from flcore.errors import DownloadError
from flcore.federation.messages import FilePart, JobFile, ReadFile
from flcore.job.messages import Content
from flcore.lead.file_download import DownloadedFile, download_file, main_file, target_paths
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer

CONTENT = bytes(range(200))
FILE = JobFile(name="run/model.safetensors", nbytes=len(CONTENT))


@pytest.fixture
def job(server: FakeServer) -> str:
    server.part_bytes = 30
    added = server.add_job()
    server.files[added] = {FILE.name: CONTENT}
    return added


def test_a_file_arrives_with_its_digest(server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path) -> None:
    target, seen = tmp_path / "a/model.safetensors", list[tuple[int, int]]()
    got = download_file(calls, job, FILE, target, observe=lambda done, total: seen.append((done, total)))
    assert got == DownloadedFile(FILE.name, target, 200, hashlib.sha256(CONTENT).hexdigest(), "new")
    assert target.read_bytes() == CONTENT and seen[-1] == (200, 200)
    assert [each.name for each in target.parent.iterdir()] == ["model.safetensors"]


def test_an_empty_file_is_a_file(server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path) -> None:
    server.files[job]["server.log"] = b""
    assert download_file(calls, job, JobFile(name="server.log", nbytes=0), tmp_path / "server.log").nbytes == 0
    assert (tmp_path / "server.log").read_bytes() == b""


def test_an_interrupted_download_goes_on_where_it_was(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    (tmp_path / "model.partial").write_bytes(CONTENT[:90])
    download_file(calls, job, FILE, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT
    assert [request.offset for request in server.requests if isinstance(request, ReadFile)] == [90, 120, 150, 180]


def test_what_has_come_is_kept_when_the_server_stays_away(server: FakeServer, job: str, tmp_path: Path) -> None:
    now = [0.0]
    calls = ServerCalls(server, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    ask = server.ask

    def ask_twice(*arguments: object) -> Reply:
        if server.count(ReadFile) == 2:
            raise ConnectionLost("gone")
        return ask(*arguments)  # type: ignore[arg-type]

    server.ask = ask_twice  # type: ignore[assignment]
    with pytest.raises(ConnectionLost):
        download_file(calls, job, FILE, tmp_path / "model")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("model.partial", CONTENT[:60])]


@pytest.mark.parametrize("rest", [b"x" * 90, CONTENT + b"longer", CONTENT[:150] + bytes(50)])
def test_a_partial_file_of_another_content_is_not_used(
    server: FakeServer, calls: ServerCalls, job: str, rest: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.partial").write_bytes(rest)
    download_file(calls, job, FILE, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_file_that_grows_or_is_replaced_meanwhile_comes_as_a_whole(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    ask, newer = server.ask, bytes(reversed(range(210)))

    def ask_and_replace(*arguments: object) -> Reply:
        if server.count(ReadFile) == 3:
            server.files[job][FILE.name] = newer
        return ask(*arguments)  # type: ignore[arg-type]

    server.ask = ask_and_replace  # type: ignore[assignment]
    assert download_file(calls, job, FILE, tmp_path / "model").nbytes == 210
    assert (tmp_path / "model").read_bytes() == newer


def test_a_damaged_file_never_gets_its_name(server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path) -> None:
    read = server._read_file

    def damaged(request: ReadFile, body: bytes) -> tuple[Content, bytes]:
        part, data = read(request, body)
        return part, bytes([data[0] ^ 1]) + data[1:] if request.offset == 60 else data

    server._read_file = damaged  # type: ignore[method-assign, assignment]
    with pytest.raises(
        DownloadError, match="expected the SHA-256 that the server gives, got another one in 3 downloads"
    ):
        download_file(calls, job, FILE, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    server._read_file = read  # type: ignore[method-assign]
    download_file(calls, job, FILE, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_part_that_never_comes_ends_the_download(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    server._read_file = lambda *_: (FilePart(nbytes=200), b"")  # type: ignore[method-assign]
    with pytest.raises(DownloadError):
        download_file(calls, job, FILE, tmp_path / "model")
    assert len(server.requests) == 3


@pytest.mark.parametrize("seed", range(5))
def test_lost_calls_and_replies_lose_no_byte(
    server: FakeServer, calls: ServerCalls, job: str, seed: int, tmp_path: Path
) -> None:
    draw, ask = random.Random(seed), server.ask
    server.part_bytes = 7

    def ask_or_lose(*arguments: object) -> Reply:
        if draw.random() < 0.4:
            raise ConnectionLost("lost")
        return ask(*arguments)  # type: ignore[arg-type]

    server.ask = ask_or_lose  # type: ignore[assignment]
    download_file(calls, job, FILE, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched_again(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    download_file(calls, job, FILE, tmp_path / "model")
    server.requests.clear()
    assert download_file(calls, job, FILE, tmp_path / "model").change == "unchanged"
    assert len(server.requests) == 1


def test_another_file_is_replaced_only_if_that_is_asked_for(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(bytes(200))  # of the same size
    with pytest.raises(DownloadError, match=r"model: expected no file, or the one of digits-1.*--overwrite"):
        download_file(calls, job, FILE, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == bytes(200)
    assert download_file(calls, job, FILE, tmp_path / "model", overwrite=True).change == "replaced"
    assert (tmp_path / "model").read_bytes() == CONTENT


def test_a_link_in_place_of_a_file_leads_nowhere(
    server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.partial").symlink_to(victim)
    with pytest.raises(DownloadError, match="symbolic link"):
        download_file(calls, job, FILE, tmp_path / "out/model")
    (tmp_path / "out/model.partial").unlink()
    (tmp_path / "out/model").symlink_to(tmp_path / "nothing")
    with pytest.raises(DownloadError, match="expected no file"):
        download_file(calls, job, FILE, tmp_path / "out/model")
    assert victim.read_bytes() == b"kept"


def test_two_downloads_of_a_file_do_not_mix(server: FakeServer, calls: ServerCalls, job: str, tmp_path: Path) -> None:
    other = os.open(tmp_path / "model.partial", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(DownloadError, match="one download at a time"):
        download_file(calls, job, FILE, tmp_path / "model")
    os.close(other)
    download_file(calls, job, FILE, tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    ["../a", "/etc/passwd", "a/../../b", "", "a//b", ".", "a/..", "a\\b", "a\0b", "a\nb", "a/", "./a", "out/x"],
)
def test_a_name_that_leaves_the_directory_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/")
    with pytest.raises(DownloadError, match="expected names of files within the job"):
        target_paths([JobFile(name="fine", nbytes=1), JobFile(name=name, nbytes=1)], tmp_path)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="each once"):
        target_paths([FILE, FILE], tmp_path)


def test_the_main_file_is_the_one_in_the_fewest_directories() -> None:
    files = [JobFile(name=name, nbytes=1) for name in ("old/run/history.jsonl", "run/history.jsonl", "run/history")]
    assert main_file(files, "history.jsonl") == files[1]
    assert main_file(files, "model.safetensors") is None
