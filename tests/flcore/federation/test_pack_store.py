"""The store of packs: parts in any order, kills at any byte, bounds, and one file for each digest."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flcore_transport import Refused

from flcore.federation.pack_store import IDLE_S, PackStore

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PART = 1000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(directory: Path, used: set[str] | None = None, clock: Clock | None = None) -> PackStore:
    return PackStore(directory, used or set(), max_pack_bytes=20_000, max_pending_bytes=50_000, clock=clock or Clock())


def send(store: PackStore, content: bytes, stop_at: int = 1 << 30) -> int:
    digest = hashlib.sha256(content).hexdigest()
    received = store.put(digest, len(content), 0, b"")
    while received < min(len(content), stop_at):
        received = store.put(digest, len(content), received, content[received : received + PART])
    return received


def test_a_pack_appears_when_it_is_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    send(store, CONTENT, stop_at=5 * PART)
    assert not store.path(DIGEST).exists()
    with pytest.raises(Refused, match="send it first"), store.holding(DIGEST):
        pass
    assert send(store, CONTENT) == len(CONTENT)
    with store.holding(DIGEST) as path:
        assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{DIGEST}.flpack"]
    assert send(store, CONTENT) == len(CONTENT), "sent again, it is there"


def test_a_part_at_another_place_is_ignored_and_the_reply_says_where_to_go_on(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.put(DIGEST, len(CONTENT), 0, CONTENT[:PART]) == PART
    assert store.put(DIGEST, len(CONTENT), 0, CONTENT[:PART]) == PART
    assert store.put(DIGEST, len(CONTENT), 5 * PART, CONTENT[:PART]) == PART


def test_a_transfer_goes_on_after_a_kill_at_any_part(tmp_path: Path) -> None:
    for stop_at in range(0, len(CONTENT) + PART, PART):
        directory = tmp_path / str(stop_at)
        send(opened(directory), CONTENT, stop_at)
        store = opened(directory)
        assert store.put(DIGEST, len(CONTENT), 0, b"") == min(stop_at, len(CONTENT))
        send(store, CONTENT)
        assert store.path(DIGEST).read_bytes() == CONTENT


def test_a_kill_before_the_last_rename_and_a_torn_file_lose_nothing(tmp_path: Path) -> None:
    opened(tmp_path)
    partial = tmp_path / f"{DIGEST}.partial"
    partial.write_bytes(CONTENT)
    assert opened(tmp_path).put(DIGEST, len(CONTENT), 0, b"") == len(CONTENT)
    assert (tmp_path / f"{DIGEST}.flpack").exists() and not partial.exists()
    (tmp_path / f"{DIGEST}.flpack").unlink()
    partial.write_bytes(bytes(len(CONTENT)))  # a power failure has left zeros
    store = opened(tmp_path)
    with pytest.raises(Refused, match=f"expected a pack with the SHA-256 {DIGEST}"):
        store.put(DIGEST, len(CONTENT), 0, b"")
    assert send(store, CONTENT) == len(CONTENT)


def test_other_bytes_than_the_digest_says_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(Refused, match="send it again") as refused:
        store.put(DIGEST, 5, 0, b"other")
    assert refused.value.kind == "bad-pack" and list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="expected a pack of 5 bytes, got 6 bytes"):
        store.put(DIGEST, 5, 0, b"others")


def test_a_pack_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="expected a pack of at most 0MiB, got one of 20,001 bytes") as refused:
        opened(tmp_path).put(DIGEST, 20_001, 0, b"")
    assert refused.value.kind == "too-large"


def test_unfinished_packs_are_bounded_and_idle_ones_give_way(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    for number in range(5):
        store.put(f"{number:064x}", 10_000, 0, b"begun")
    with pytest.raises(Refused, match="5 packs without a job") as refused:
        store.put(DIGEST, len(CONTENT), 0, b"")
    assert refused.value.kind == "busy"
    clock.now += IDLE_S
    store.put(f"{1:064x}", 10_000, 0, b"")  # it is alive
    send(store, CONTENT)
    assert not (tmp_path / f"{0:064x}.partial").exists() and (tmp_path / f"{1:064x}.partial").exists()


def test_a_pack_that_a_job_has_is_never_evicted_and_goes_with_its_last_job(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    send(store, CONTENT)
    with store.holding(DIGEST):
        store.add_use(DIGEST)
    clock.now += 10 * IDLE_S
    for number in range(5):
        store.put(f"{number:064x}", 10_000, 0, b"begun")
    assert store.path(DIGEST).exists()
    store.end_use(DIGEST)
    assert not store.path(DIGEST).exists()


def test_a_pack_stays_for_a_submission_that_is_under_way(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / f"{DIGEST}.flpack").write_bytes(CONTENT)
    store = opened(tmp_path, {DIGEST})
    with store.holding(DIGEST) as path:
        store.end_use(DIGEST)  # its last job is deleted meanwhile
        assert path.exists()
        store.add_use(DIGEST)
    assert path.exists()
    store.end_use(DIGEST)
    assert not path.exists()


def test_a_pack_that_is_held_holds_up_no_call_and_is_not_evicted(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    send(store, CONTENT)
    with store.holding(DIGEST), store.holding(DIGEST) as path:
        assert store.put(DIGEST, len(CONTENT), 0, b"") == len(CONTENT)
        clock.now += 10 * IDLE_S
        with pytest.raises(Refused, match="packs without a job"):
            for number in range(5):
                store.put(f"{number:064x}", 10_000, 0, b"")
        assert path.exists()
    with pytest.raises(Refused, match="packs without a job"):
        store.put(f"{9:064x}", 10_000, 0, b"")
    assert path.exists(), "it was touched now"
    clock.now += 10 * IDLE_S
    for number in range(10, 14):
        store.put(f"{number:064x}", 10_000, 0, b"")
    assert not path.exists()


def test_calls_for_one_pack_at_once_write_each_part_once(tmp_path: Path) -> None:
    store = opened(tmp_path)
    begin = threading.Barrier(8)

    def sender(_: int) -> int:
        begin.wait()
        return send(store, CONTENT)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(sender, range(8))) == {len(CONTENT)}
    assert store.path(DIGEST).read_bytes() == CONTENT


def test_the_first_call_fixes_the_size_of_a_pack(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.put(DIGEST, len(CONTENT), 0, CONTENT[:PART]) == PART
    for other in (1, PART, 2 * PART, 20_000):
        with pytest.raises(Refused, match="expected the pack's size of 10,240 bytes as before") as refused:
            store.put(DIGEST, other, PART, CONTENT[:PART])
        assert refused.value.kind == "bad-pack"
    assert send(store, CONTENT) == len(CONTENT), "nothing is lost"


def test_many_small_reservations_do_not_become_large_packs(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(50):
        store.put(f"{number:064x}", 1, 0, b"")
    for number in range(50):
        with pytest.raises(Refused):
            store.put(f"{number:064x}", 20_000, 0, bytes(10_000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_a_caller_who_takes_all_the_room_gives_way_to_another_one(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(5):
        store.put(f"{number:064x}", 10_000, 0, b"begun", "lead/mallory")
    with pytest.raises(Refused, match="5 packs without a job"):
        store.put(f"{9:064x}", 10_000, 0, b"", "lead/mallory")
    received = store.put(DIGEST, len(CONTENT), 0, CONTENT[:PART], "lead/alice")
    assert received == PART
    with pytest.raises(Refused, match="4 packs without a job"):
        store.put(f"{9:064x}", 20_000, 0, b"", "lead/mallory")
    assert store.put(DIGEST, len(CONTENT), 0, b"", "lead/alice") == PART, "who has less keeps it"


def test_after_a_restart_an_unfinished_pack_counts_with_what_is_there(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number:064x}.partial").write_bytes(b"begun")
    (tmp_path / f"{DIGEST}.partial").write_bytes(CONTENT[:PART])
    store = opened(tmp_path)
    with pytest.raises(Refused, match="1,000 bytes as before, got 999 bytes"):
        store.put(DIGEST, PART - 1, 0, b"")
    assert store.put(DIGEST, len(CONTENT), 0, b"") == PART
    for number in range(3):
        store.put(f"{number:064x}", 10_000, 0, b"")
    with pytest.raises(Refused, match="packs without a job"):
        store.put(f"{3:064x}", 20_000, 0, b"")
    store.put(f"{3:064x}", 5_000, 0, b"")
    assert send(store, CONTENT) == len(CONTENT)
