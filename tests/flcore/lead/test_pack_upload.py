"""Uploads of packs: whole, resumed at the byte that the server lacks, over losses, and not without end."""

import random
from pathlib import Path

import pytest
from flcore_transport import ConnectionLost, Reply, TransportError

from flcore.federation.messages import PackReceived, PutPack
from flcore.lead.pack_upload import file_sha256, upload_pack
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer

CONTENT = bytes(range(251)) * 7


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "job.flpack"
    path.write_bytes(CONTENT)
    return path


def test_a_pack_arrives_whole(server: FakeServer, calls: ServerCalls, pack: Path) -> None:
    server.part_bytes, seen = 100, list[tuple[int, int]]()
    upload_pack(calls, pack, file_sha256(pack), lambda done, total: seen.append((done, total)))
    assert server.packs == {file_sha256(pack): CONTENT}
    assert seen == sorted(seen) and seen[0] == (0, 1757) and seen[-1] == (1757, 1757)


def test_a_pack_that_the_server_has_costs_one_call(server: FakeServer, calls: ServerCalls, pack: Path) -> None:
    server.packs[file_sha256(pack)] = CONTENT
    upload_pack(calls, pack, file_sha256(pack))
    assert len(server.requests) == 1


def test_an_interrupted_upload_goes_on_at_the_missing_byte(server: FakeServer, calls: ServerCalls, pack: Path) -> None:
    server.packs[file_sha256(pack)] = CONTENT[:1_000]
    upload_pack(calls, pack, file_sha256(pack))
    assert server.packs[file_sha256(pack)] == CONTENT
    assert [request.offset for request in server.requests[:2]] == [0, 1_000]


@pytest.mark.parametrize("seed", range(5))
def test_lost_calls_and_lost_replies_lose_no_byte(
    server: FakeServer, calls: ServerCalls, pack: Path, seed: int
) -> None:
    draw, ask = random.Random(seed), server.ask
    server.part_bytes = 50

    def ask_or_lose(*arguments: object) -> Reply:
        fate = draw.random()
        if fate < 0.2:
            raise ConnectionLost("the call was lost")
        reply = ask(*arguments)  # type: ignore[arg-type]
        if fate > 0.8:
            raise ConnectionLost("the reply was lost")
        return reply

    server.ask = ask_or_lose  # type: ignore[assignment]
    upload_pack(calls, pack, file_sha256(pack))
    assert server.packs[file_sha256(pack)] == CONTENT


def test_a_server_that_takes_nothing_ends_the_upload(server: FakeServer, calls: ServerCalls, pack: Path) -> None:
    server._put_pack = lambda *_: (PackReceived(received=7), b"")  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="more than 7 of 1,757 bytes, got 7 after 5 parts"):
        upload_pack(calls, pack, file_sha256(pack))
    assert server.count(PutPack) < 10
