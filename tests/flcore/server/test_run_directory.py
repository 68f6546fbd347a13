"""The directory of a run: one owner, a history that is appended, room for the next model, nothing overwritten."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flcore
from flcore import JobError, RunExists
from flcore.server import run_archive
from flcore.server.history import RoundRecord
from flcore.server.run_directory import HISTORY_FILE, RESERVED_FILE, RunDirectory


def opened(path: Path, *, fresh: bool = False) -> RunDirectory:
    return RunDirectory(path, job="hospital", contract_fingerprint="f" * 64, fresh=fresh)


def run_in(path: Path, rounds: int = 2) -> None:
    with opened(path) as directory:
        for number in range(1, rounds + 1):
            directory.append(RoundRecord(number))
        flcore.save({"w": np.full(3, rounds)}, path / "model.safetensors")


def lines(path: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (path / HISTORY_FILE).read_text().splitlines()]


def test_a_second_owner_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as first:
        first.append(RoundRecord(1))
        (tmp_path / "run" / ".staging").mkdir()
        before = sorted((path.name, path.stat().st_mtime_ns) for path in first.path.iterdir())
        for fresh in (False, True):
            with pytest.raises(RunExists, match=rf"in use by process {os.getpid()} on .*, since 20.*--out"):
                opened(tmp_path / "run", fresh=fresh)
        assert sorted((path.name, path.stat().st_mtime_ns) for path in first.path.iterdir()) == before
        first.append(RoundRecord(2))
    assert lines(tmp_path / "run") == [1, 2]


def test_the_owner_may_be_another_process_and_its_death_gives_the_directory_up(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom flcore.server.run_directory import RunDirectory\n"
        "held = RunDirectory(pathlib.Path(sys.argv[1]), job='t', contract_fingerprint='0')\nprint('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunExists, match=f"in use by process {other.pid} "):
            opened(tmp_path / "run")
        other.kill()
    opened(tmp_path / "run").close()


def test_the_lock_of_a_file_that_its_owner_has_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, flock = opened(tmp_path / "run"), fcntl.flock

    def late(lock: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.close()  # between the second one's open and its lock
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with opened(tmp_path / "run"), pytest.raises(RunExists, match="in use by"):
        opened(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_what_a_run_left_is_never_overwritten(tmp_path: Path) -> None:
    run_in(tmp_path / "run")
    with pytest.raises(RunExists, match=r"holds a run already: 2 rounds, model.safetensors of 20.*--out.*--fresh"):
        opened(tmp_path / "run")
    assert lines(tmp_path / "run") == [1, 2]
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with opened(tmp_path / "run", fresh=True) as second:
        second.append(RoundRecord(1))
    assert lines(tmp_path / "run") == [1] and lines(tmp_path / "run.1") == [1, 2]
    assert (tmp_path / "run" / "notes.txt").exists(), "what is not a run's stays"
    assert flcore.load(tmp_path / "run.1" / "model.safetensors")["w"].tolist() == [2] * 3
    with opened(tmp_path / "run", fresh=True):
        pass
    assert lines(tmp_path / "run.2") == [1]


def test_a_run_that_left_no_result_is_no_run(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path / "run") as directory:
            (directory.path / ".models" / "of a server that was killed").mkdir(parents=True)
        assert sorted(path.name for path in directory.path.iterdir()) == [".models"]


def test_every_run_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids = set()
    for name in "ab":
        with opened(tmp_path / name) as directory:
            ids.add(directory.id)
            written = json.loads((tmp_path / name / "run.json").read_text())
            assert written["id"] == directory.id and written["job"] == "hospital"
    assert len(ids) == 2


def test_a_line_that_the_disk_does_not_take_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "run") as directory:
        directory.append(RoundRecord(1))
        write = os.write

        def half(file: int, data: bytes) -> int:
            return write(file, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError) as caught:
            directory.append(RoundRecord(2))
        monkeypatch.undo()
        assert caught.value.errno == errno.ENOSPC
        directory.append(RoundRecord(3))
    assert lines(tmp_path / "run") == [1, 3]


def test_the_cost_of_a_round_does_not_grow_with_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = os.write
    with opened(tmp_path / "run") as directory:

        def noted(file: int, data: bytes) -> int:
            written.append(len(data))
            return write(file, data)

        monkeypatch.setattr(os, "write", noted)
        for number in range(1, 201):
            directory.append(RoundRecord(number))
    assert len(written) == 200 and max(written) <= min(written) + 4


def test_disk_space_for_the_next_model_is_reserved_before_updates_can_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "run") as directory:
        directory.reserve(3_000_000)
        reserved = (directory.path / RESERVED_FILE).stat()
        assert reserved.st_size == 3_000_000 and reserved.st_blocks * 512 >= 3_000_000
        directory.free_reserve()
        assert not (directory.path / RESERVED_FILE).exists()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            directory.reserve(1)
        assert not (directory.path / RESERVED_FILE).exists()


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(JobError, match=r"expected a directory that can be written to, got .*; choose another one"):
            opened(place)


class Killed(BaseException):
    """Ends the process of a test, as far as the code in it can tell."""


STEPS = ("mkdir", "write_text", "replace", "rename", "unlink")


def begin_and_be_killed(run: Path, steps: int, *, is_inside: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Begin anew in a directory, and be killed before step number `steps`. Returns False if there are fewer."""
    left = [steps]

    def wrapped(original: Any) -> Any:
        def step(path: Path, *args: Any, **named: Any) -> Any:
            if is_inside and path.parent == run.parent and path.name.startswith("run."):
                raise PermissionError(errno.EACCES, "not ours")
            if sys._getframe(1).f_code.co_filename == run_archive.__file__:
                if not left[0]:
                    raise Killed
                left[0] -= 1
            return original(path, *args, **named)

        return step

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(Path, name, wrapped(getattr(Path, name)))
        try:
            opened(run, fresh=True).close()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_kill_at_each_step_of_fresh_loses_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for steps in range(100):
        run = tmp_path / str(steps) / "run"
        run_in(run)
        (run / ".published").mkdir()
        (run / ".published/8.safetensors").write_bytes(b"model")
        (run / "notes.txt").write_text("mine")
        names = ["history.jsonl", "model.safetensors", "run.json", ".published/8.safetensors"]
        before = {name: (run / name).read_bytes() for name in names}
        was_killed = begin_and_be_killed(run, steps, is_inside=place == "inside", monkeypatch=monkeypatch)
        is_begun = not was_killed or (run / run_archive.TARGET_FILE).exists()
        for is_fresh in (True, False):
            with opened(run, fresh=is_fresh) as directory:
                assert not directory.is_continued
        found = [archive for archive in (*run.parent.glob("run.*"), *run.glob("run.[0-9]*")) if any(archive.iterdir())]
        assert len(found) == 1 and {name: (found[0] / name).read_bytes() for name in names} == before
        assert found[0].parent == (run if place == "inside" and is_begun else run.parent)
        assert [path.name for path in run.iterdir() if path.is_file()] == ["notes.txt"]
        if not was_killed:
            break
    assert steps >= 8


@pytest.mark.parametrize(
    ("name", "what"),
    [("state.sqlite", "expected a regular file, got a directory"), ("history.jsonl", "Is a directory")],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(JobError, match=rf"expected a file that can be written to, got .*run/{name}: {what}"):
        opened(tmp_path / "run")
