"""A file system that is really full or read-only: a small one in memory, which root can mount.

The errors of `test_disk.py` are put into the process. These are the system's own, SQLite's among them.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flcore.errors import DiskError, JobError
from flcore.server.events import ClientFailed, Event, RoundFinished, TaskSent
from tests.flcore.server.failing_disk import DiskJob, Report, hasten

MIB = 1 << 20
ELEMENTS = 1_200_000
"""A model of 4.8 MB: three pieces."""

FULL, RECORD_FULL = "; free space there", "database or disk is full; free space there"


class SmallDisk:
    """A file system of some MiB."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, *, leave: int = 0) -> None:
        """Take all space but some bytes."""
        system = os.statvfs(self.path)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, system.f_bavail * system.f_frsize - leave)

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        """Change an option, such as "ro"."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: None) -> Iterator[SmallDisk]:
    hasten(monkeypatch)
    path = tmp_path / "small"
    path.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command mount")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    hasten(monkeypatch)
    report = DiskJob(tmp_path / "large", elements=ELEMENTS).start(tmp_path / "undisturbed")
    assert report.error is None
    return report


def about(report: Report, reason: str) -> list[str]:
    return [line for line in report.lines if reason in line]


def require_no_path(report: Report, small: SmallDisk) -> None:
    told = [*report.told, *report.refusals]
    assert not [text for text in told if str(small.path) in text or "space" in text], told
    assert not [line for line in report.lines if "Traceback" in line]


@pytest.mark.parametrize("transport", ["in-process", "grpc"])
def test_updates_that_do_not_fit_come_again_when_there_is_space(
    transport: str, small: SmallDisk, undisturbed: Report, tmp_path: Path
) -> None:
    job, failed = DiskJob(tmp_path / "job", elements=ELEMENTS), list[str]()

    def watch(event: Event) -> None:
        if isinstance(event, TaskSent) and event.round == 1 and event.task == "train" and not failed:
            small.fill(leave=8 * MIB)  # one update fits, and not two
        if isinstance(event, ClientFailed):
            failed.append(event.client)
            small.free()

    report = job.start(small.path / "out", observe=watch, transport=transport)
    assert report.error is None, report.lines
    assert failed and sorted(failed) == sorted(set(failed)), "each client failed once at most"
    assert len(about(report, FULL)) == len(failed), report.lines
    require_no_path(report, small)
    assert report.values == undisturbed.values and report.receipts == undisturbed.receipts
    assert set(job.trained.values()) == {1}


def test_a_record_that_does_not_fit_ends_the_run_which_goes_on_when_there_is_space(
    small: SmallDisk, undisturbed: Report, tmp_path: Path
) -> None:
    job = DiskJob(tmp_path / "job", elements=ELEMENTS)

    def watch(event: Event) -> None:
        if isinstance(event, TaskSent) and event.round == 1 and event.task == "validate":
            small.fill()

    first = job.start(small.path / "out", observe=watch)
    assert isinstance(first.error, DiskError), first.lines
    lines = about(first, RECORD_FULL)
    assert lines[-1].endswith("then start again: a run that is not over goes on")
    assert all(line.startswith("client-") for line in lines[:-1]), lines
    require_no_path(first, small)
    small.free()
    second = job.start(small.path / "out")
    assert second.error is None, second.lines
    assert second.values == undisturbed.values and first.receipts + second.receipts == undisturbed.receipts
    assert set(job.trained.values()) == {1}


def test_a_model_that_does_not_fit_ends_the_run_before_clients_train_in_vain(
    small: SmallDisk, undisturbed: Report, tmp_path: Path
) -> None:
    job, sent = DiskJob(tmp_path / "job", elements=ELEMENTS), list[tuple[str, int]]()

    def watch(event: Event) -> None:
        if isinstance(event, TaskSent):
            sent.append((event.task, event.round))
        if isinstance(event, RoundFinished):
            small.fill(leave=2 * MIB)  # the record fits, the next model does not

    first = job.start(small.path / "out", observe=watch)
    assert isinstance(first.error, DiskError) and "/.reserve: No space left on device" in str(first.error), first.lines
    assert len(about(first, "No space left on device")) == 1 and sent == [("train", 1), ("validate", 1)]
    require_no_path(first, small)
    small.free()
    second = job.start(small.path / "out")
    assert second.error is None, second.lines
    assert second.values == undisturbed.values and first.receipts + second.receipts == undisturbed.receipts


def test_a_file_system_that_is_read_only_is_refused_before_a_client_is_asked(small: SmallDisk, tmp_path: Path) -> None:
    job = DiskJob(tmp_path / "job")
    assert job.start(small.path / "over").error is None
    small.remount("ro")
    for name in ("over", "new"):
        report = job.start(small.path / name)
        assert isinstance(report.error, JobError) and len(report.lines) == 1
        assert "Read-only file system; choose another one (--out), or make it writable" in report.lines[0]
    small.remount("rw")
    job.trained = Counter()
    assert job.start(small.path / "new").error is None and set(job.trained.values()) == {1}
