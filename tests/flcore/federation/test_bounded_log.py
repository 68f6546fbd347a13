"""Logs of jobs: bounded, and read by offset over the file and its earlier part."""

from pathlib import Path

from flcore.federation.bounded_log import BoundedLog, earlier_log, read_log


def test_a_log_takes_twice_its_limit_at_most(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 100)
    for number in range(100):
        log.write(f"line {number:3d}\n".encode())
        sizes = [each.stat().st_size for each in (path, earlier_log(path)) if each.exists()]
        assert all(size <= 100 for size in sizes)
    assert path.read_bytes().endswith(b"line  99\n")
    log.write(b"x" * 1000)
    assert path.stat().st_size == 100


def test_a_reader_that_keeps_up_reads_each_line_once_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log, offset, found = BoundedLog(path, 100), 0, b""
    assert read_log(path, 0, 50) == (b"", 0)
    for number in range(20):
        log.write(f"line {number:3d}\n".encode())
        data, offset = read_log(path, offset, 1000)
        found += data
    assert found == b"".join(f"line {number:3d}\n".encode() for number in range(20))


def test_a_read_is_bounded_and_goes_on_at_the_next_offset(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    log = BoundedLog(path, 100)
    log.write(b"a" * 90)
    log.write(b"b" * 90)
    parts, offset = [], 0
    while data := read_log(path, offset, 40)[0]:
        parts.append(data)
        offset += len(data)
    assert b"".join(parts) == b"a" * 90 + b"b" * 90 and max(map(len, parts)) == 40
    assert read_log(path, 10_000, 40) == (b"b" * 40, 130), "beyond the end: the present file"


def test_each_write_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    BoundedLog(tmp_path / "a/b.log", 100, lambda: told.append(1)).write(b"line\n")
    assert told == [1]
