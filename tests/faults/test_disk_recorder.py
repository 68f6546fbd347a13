"""The recorder of a disk: it logs each change once, in order, and a change that it cannot see is an error."""

# ruff: noqa: PTH102, PTH104, PTH105, PTH106, PTH108 - the functions of `os` are what is tested

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flcore.server.run_state import RunState
from tests.faults.disk_model import require_complete
from tests.faults.disk_recorder import DiskRecorder
from tests.faults.killed import recorder_after_kill
from tests.faults.operations import Mark, NameChange, Resize, Sync, Write
from tests.faults.sqlite_recorder import HEADER_BYTES, recording_sqlite


@pytest.fixture
def recorder(tmp_path: Path) -> DiskRecorder:
    (tmp_path / "root").mkdir()
    return DiskRecorder(tmp_path / "root")


def shown(recorder: DiskRecorder) -> list[str]:
    """Return the log as short texts."""
    lines = []
    for operation in recorder.log:
        match operation:
            case NameChange(changes):
                lines.append(" ".join(f"{name}={inode}" for _, name, inode in changes))
            case Write(file, offset, data):
                lines.append(f"{file}@{offset} {data.decode()}")
            case Resize(file, size):
                lines.append(f"{file} is {size}")
            case Sync(inode, path):
                lines.append(f"sync {inode} {path}")
            case Mark(name):
                lines.append(f"mark {name}")
    return lines


def test_each_function_of_os_is_logged(recorder: DiskRecorder) -> None:
    with recorder.recording():
        os.mkdir(recorder.root / "d")
        file = os.open(recorder.root / "d/a", os.O_RDWR | os.O_CREAT)
        os.write(file, b"one")
        os.write(file, b"two")
        os.pwrite(file, b"x", 1)
        os.pwritev(file, [b"y", b"z"], 4)
        os.ftruncate(file, 5)
        os.posix_fallocate(file, 0, 9)
        os.fsync(file)
        os.close(file)
        os.truncate(recorder.root / "d/a", 2)
        recorder.mark("done")
        os.link(recorder.root / "d/a", recorder.root / "b")
        os.replace(recorder.root / "b", recorder.root / "d/a")  # two names of one file: nothing happens
        os.rename(recorder.root / "b", recorder.root / "c")
        os.unlink(recorder.root / "d/a")
        os.rmdir(recorder.root / "d")
    assert shown(recorder) == [
        "d=1", "a=2", "2@0 one", "2@3 two", "2@1 x", "2@4 yz", "2 is 5", "2 is 9", "sync 2 d/a", "2 is 2", "mark done",
        "b=2", "b=None c=2", "a=None", "d=None",
    ]  # fmt: skip
    require_complete(recorder)


def test_files_that_pathlib_and_shutil_write_are_logged(recorder: DiskRecorder) -> None:
    with recorder.recording():
        (recorder.root / "d/e").mkdir(parents=True)
        (recorder.root / "a").write_text("one", encoding="utf-8")
        (recorder.root / "a").write_bytes(b"four")
        with (recorder.root / "a").open("ab") as file:
            file.write(b"ty")
            file.flush()
            os.fsync(file.fileno())
        with (recorder.root / "a").open("r+b") as file:
            file.seek(1)
            file.truncate()
        (recorder.root / "a").replace(recorder.root / "d/b")
        shutil.rmtree(recorder.root / "d")
        assert Path(tempfile.mkdtemp(dir=recorder.root)).is_dir()
    assert shown(recorder)[:-1] == [
        "d=1", "e=2", "a=3", "3@0 one", "3 is 0", "3@0 four", "3@4 ty", "sync 3 a", "3 is 1", "a=None b=3", "b=None",
        "e=None", "d=None",
    ]  # fmt: skip
    require_complete(recorder)


def test_a_new_file_has_a_new_number_also_if_the_system_uses_an_inode_again(recorder: DiskRecorder) -> None:
    with recorder.recording():
        for _ in range(20):
            (recorder.root / "a").write_bytes(b"1")
            (recorder.root / "a").unlink()
    assert len({operation.file for operation in recorder.log if isinstance(operation, Write)}) == 20


def test_a_number_of_a_file_that_is_gone_is_not_used_again_after_a_restart(
    recorder: DiskRecorder, tmp_path: Path
) -> None:
    with recorder.recording():
        (recorder.root / "kept").write_bytes(b"1")
        (recorder.root / "gone").write_bytes(b"2")
        (recorder.root / "gone").unlink()
    recorder.add(Write(3, 0, b"of a file that gets its name after the kill"))
    (tmp_path / "again").mkdir()
    restarted = recorder_after_kill(tmp_path / "again", recorder.log)
    with restarted.recording():
        (restarted.root / "directory").mkdir()
    require_complete(restarted)


def test_files_elsewhere_are_left_alone(recorder: DiskRecorder, tmp_path: Path) -> None:
    with recorder.recording():
        (tmp_path / "a").write_text("one")
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "d").mkdir()
        with pytest.raises(ValueError, match="border"):
            (tmp_path / "b").rename(recorder.root / "b")
    assert recorder.log == []


def _by_sendfile(root: Path) -> None:
    shutil.copyfile(__file__, root / "copy")


def _by_c(root: Path) -> None:
    ctypes.CDLL(None).mkdir(os.fsencode(root / "d"), 0o700)


def _by_symlink(root: Path) -> None:
    (root / "link").symlink_to(__file__)


@pytest.mark.parametrize("change", [_by_sendfile, _by_c, _by_symlink])
def test_a_change_that_goes_around_the_recorder_is_an_error(
    recorder: DiskRecorder, change: Callable[[Path], None]
) -> None:
    with recorder.recording():
        change(recorder.root)
    with pytest.raises(AssertionError, match="the recorder has missed changes of"):
        require_complete(recorder)


def test_the_log_has_the_order_of_the_effects_with_many_threads(recorder: DiskRecorder) -> None:
    def write(number: int) -> None:
        for turn in range(30):
            os.write(shared, b"%d" % number)
            (recorder.root / "name").write_bytes(b"%d" % turn)

    with recorder.recording():
        shared = os.open(recorder.root / "shared", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.close(shared)
    require_complete(recorder)


def test_commits_of_sqlite_are_logged_with_their_syncs(recorder: DiskRecorder) -> None:
    path = recorder.root / "state.sqlite"
    with recorder.recording(), recording_sqlite(recorder, checkpoint_pages=9):
        for opened in range(2):
            with RunState(path) as state:
                for number in range(1, 4):
                    before = len(recorder.log)
                    state.add_facts({f"{opened} {number}": "fact"})
                    added = recorder.log[before:]
                    assert isinstance(added[0], Write) and Sync(added[0].file, "state.sqlite-wal") in added
                    synced = max(position for position, each in enumerate(added) if isinstance(each, Sync))
                    # Behind the last sync: the count of the changes, and the name of its file.
                    *created, counted = added[synced + 1 :]
                    assert isinstance(counted, Write) and len(counted.data) < HEADER_BYTES + 16
                    assert all(isinstance(each, NameChange) for each in created) and len(created) <= 1
        require_complete(recorder)
    checkpoints = [each for each in recorder.log if isinstance(each, Sync) and each.path == "state.sqlite"]
    headers = [each for each in recorder.log if isinstance(each, Write) and len(each.data) == 32]
    assert len(checkpoints) >= 3 and len(headers) >= 3  # the log was begun anew between checkpoints, too
