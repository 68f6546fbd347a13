"""Files: whole or not at all, and keys for their owner alone."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from flcore.errors import CertificateError
from flcore.identity.files import (
    MAX_FILE_BYTES,
    PRIVATE,
    create_file,
    file_stamp,
    locked,
    read_file,
    read_private_file,
    remove_partial_files,
    replace_file,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    create_file(path, b"one", mode=PRIVATE)
    assert path.read_bytes() == b"one" and mode(path) == 0o600
    with pytest.raises(FileExistsError):
        create_file(path, b"two")
    (tmp_path / "b").symlink_to(tmp_path / "absent")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "b", b"two")
    assert path.read_bytes() == b"one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    create_file(tmp_path / "a", b"one", mode=PRIVATE)
    assert (tmp_path / "a").read_bytes() == b"one" and mode(tmp_path / "a") == 0o600
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "a", b"two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_modes_hold_under_every_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_file(tmp_path / "key", b"k", mode=PRIVATE)
        replace_file(tmp_path / "server.pem", b"k", mode=PRIVATE)
    finally:
        os.umask(old)
    assert mode(tmp_path / "key") == mode(tmp_path / "server.pem") == 0o600


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, full)
            with pytest.raises(OSError, match="No space left"):
                replace_file(path, b"new")
        assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path, contents = tmp_path / "a", {bytes([letter]) * 100_000 for letter in b"abcd"}
    replace_file(path, b"a" * 100_000)
    is_done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                replace_file(path, content)
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_done.is_set():
        assert read_file(path) in contents
    writer.join()


@pytest.mark.parametrize("bad", [0o640, 0o604, 0o660, 0o666, 0o644, 0o601])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, bad: int) -> None:
    path = tmp_path / "client.key"
    create_file(path, b"k", mode=PRIVATE)
    path.chmod(bad)
    with pytest.raises(CertificateError, match=rf"mode 0600\), got mode {bad:04o}; run `chmod 600 "):
        read_private_file(path)
    path.chmod(0o400)
    assert read_private_file(path) == b"k"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_somebody_else_is_refused(tmp_path: Path) -> None:
    create_file(tmp_path / "client.key", b"k", mode=PRIVATE)
    os.chown(tmp_path / "client.key", 12345, -1)
    with pytest.raises(CertificateError, match="got one of user 12345; run `chown 0 "):
        read_private_file(tmp_path / "client.key")


def test_only_small_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(MAX_FILE_BYTES + 1))
    (tmp_path / "fits").write_bytes(bytes(MAX_FILE_BYTES))
    assert len(read_file(tmp_path / "fits")) == MAX_FILE_BYTES
    for name, said in [
        ("absent", "expected a file, got none"),
        ("pipe", "got a named pipe"),
        ("", "got a directory"),
        ("large", "expected at most 1048576 bytes"),
    ]:
        with pytest.raises(CertificateError, match=said):
            read_file(tmp_path / name)
    with pytest.raises(CertificateError, match="a device"):
        read_file(Path("/dev/zero"))


def test_a_replaced_file_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert file_stamp(path) is None
    replace_file(path, b"one")
    stamp = file_stamp(path)
    assert stamp == file_stamp(path)
    kept = path.stat()
    replace_file(path, b"two")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as a copy that preserves times does
    assert file_stamp(path) != stamp


def test_one_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(tmp_path / "lock"):
        inside.set()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".server.pem.0011aabb.partial").write_bytes(b"half")
    (tmp_path / "server.pem").write_bytes(b"whole")
    remove_partial_files(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["server.pem"]


def test_a_path_with_a_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="zero character"):
        read_file(tmp_path / "a\0b")
