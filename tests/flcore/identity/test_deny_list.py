"""The deny list: read again when it changes, and never weaker for being damaged."""

import logging
from pathlib import Path

import pytest

from flcore.errors import CertificateError
from flcore.identity import deny_list
from flcore.identity.deny_list import HEADER, DenyList, create_deny_list, deny, read_deny_list

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_deny_list(tmp_path / "revoked.txt")
    return tmp_path / "revoked.txt"


def test_a_list_that_is_in_use_follows_its_file(path: Path) -> None:
    denied = DenyList(path)
    assert A not in denied
    deny(path, {A: "north"})
    assert A in denied and B not in denied
    deny(path, {B: "south", A: "again"})
    assert A in denied and B in denied
    assert path.read_text() == f"{HEADER}{A}  # north\n{B}  # south\n"
    path.write_text(f"{B}\n")  # by hand: an entry that is taken out is admitted again
    assert A not in denied and B in denied


def test_lines_written_by_hand_stay(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf# mine\r\n\r\n" + ":".join(["AA"] * 32).encode() + b"  # a laptop")
    deny(path, {B: "south\nCC"})
    assert read_deny_list(path) == {A, B}
    assert "# mine" in path.read_text() and "# a laptop\n" in path.read_text()
    assert path.read_text().endswith(f"{B}  # south\\nCC\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nonsense\n", "line 1: expected a SHA-256 fingerprint"),
        (f"{A}\n{B[:-1]}\n".encode(), "line 2: expected a SHA-256 fingerprint"),
        (f"{A} {B}\n".encode(), "line 1"),
        (f"{A}\u2028{B}\n".encode(), "line 1"),
        (b"\xff\xfea\0", "expected UTF-8, got UTF-16"),
        (b"\x80", "expected UTF-8"),
        (bytes(10), "expected UTF-8, got a zero"),
        (b"#" * (4 << 20) + b"#", "expected at most"),
    ],
)
def test_a_malformed_list_is_refused_at_the_start_and_denies_no_less_later(
    path: Path, content: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    deny(path, {C: "before"})
    used = DenyList(path)
    path.write_bytes(content)
    for opened in (DenyList, read_deny_list):
        with pytest.raises(CertificateError, match=said):
            opened(path)
    with pytest.raises(CertificateError, match=said):
        deny(path, {B: "more"})
    with caplog.at_level(logging.WARNING):
        assert C in used and B not in used
        assert (A in used) == (b"\n" + A.encode() in b"\n" + content and content.startswith(f"{A}\n".encode()))
    assert len(caplog.records) == 1 and "denied before stay denied" in caplog.text
    path.write_text(f"{B}\n")
    assert B in used and C not in used  # sound again: what it says holds


def test_a_list_that_is_removed_denies_no_less(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deny(path, {A: "north"})
    used = DenyList(path)
    path.unlink()
    assert A in used and B not in used and A in used
    assert len(caplog.records) == 1 and "expected a file, got none" in caplog.text
    with pytest.raises(CertificateError, match="expected a file, got none"):
        DenyList(path)
    create_deny_list(path)
    deny(path, {B: "south"})
    assert B in used


def test_a_list_that_could_not_be_read_is_read_again_though_its_file_is_the_same(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = DenyList(path)
    deny(path, {A: "north"})

    def fail(_: Path, __: int) -> bytes:
        raise CertificateError("too many open files")

    monkeypatch.setattr(deny_list, "RETRY_S", 0.0)
    with monkeypatch.context() as descriptors:
        descriptors.setattr(deny_list, "read_file", fail)
        assert A not in used and A not in used
    assert A in used
    assert caplog.text.count("too many open files") == 1


def test_a_copy_that_has_just_begun_denies_no_less(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deny(path, {A: "north"})
    content = path.read_bytes()
    used = DenyList(path)
    path.write_bytes(b"")
    assert A in used
    assert "got an empty file" in caplog.text
    path.write_bytes(content + f"{B}\n".encode())
    assert A in used and B in used


def test_a_list_that_changes_while_it_is_read_denies_no_less(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(path, {A: "north"})
    used = DenyList(path)

    def read_half(half: Path, _: int) -> bytes:
        half.write_text(f"{HEADER}{B}\n{A}\n")  # the rest of it, as soon as the first half is read
        return f"{HEADER}{B}\n".encode()

    path.write_text(f"{HEADER}{B}\n")
    with monkeypatch.context() as reading:
        reading.setattr(deny_list, "read_file", read_half)
        assert A in used
    assert A in used and B in used


def test_a_list_that_would_be_too_long_says_so_and_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(path, {f"{number:064x}": "an earlier one" for number in range(20_000)})
    before = path.read_bytes()
    assert len(before) > 1 << 20 and f"{19_999:064x}" in DenyList(path)
    monkeypatch.setattr(deny_list, "MAX_LIST_BYTES", len(before) + 100)
    with pytest.raises(CertificateError, match=r"got \d+ with the new entries, which are not written; take out"):
        deny(path, {A: "x" * 100})
    assert path.read_bytes() == before
    deny(path, {A: "short"})
    assert A in DenyList(path)
