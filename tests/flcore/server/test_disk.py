"""A disk that is full, fails or is read-only, at each place where a server uses it.

At the places where a client's answer is stored, the client fails in this attempt, and the server lives. At the others
the run ends, and goes on when it is started again.
"""

import errno
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flcore.errors import DiskError, JobError, QuorumError
from flcore.server.audit_chain import AUDIT_FILE, verify
from flcore.server.events import ClientFailed, Event, RunStarted, TaskAnswered, TaskSent
from tests.flcore.server.failing_disk import DiskJob, FailingDisk, Fault, Report, hasten

CLIENTS = ("client-1", "client-2", "client-3")
GENERIC = "the server could not store the answer"
ENDED, DONE = "the server's disk failed; its log says why", "the job is done"
UPDATE = r"\.updates/\d+-client-2-"

FULL, BROKEN, READ_ONLY = errno.ENOSPC, errno.EIO, errno.EROFS

STORING = {
    "its directory": ("mkdir", UPDATE),
    "a segment's file": ("create", UPDATE + r".*segment"),
    "a segment's length": ("truncate", UPDATE + r".*segment"),
    "its description": ("create", UPDATE + r".*\.update\.json"),
    "opening a segment": ("open", UPDATE + r".*segment"),
    "a piece": ("pwritev", UPDATE + r".*segment"),
    "a checksum": ("pwrite", UPDATE + r".*checksums"),
    "the checksums' file": ("open", UPDATE + r".*checksums"),
    "the sync of a segment": ("fsync", UPDATE + r".*segment"),
    "the sync of the checksums": ("fsync", UPDATE + r".*checksums"),
    "the description's name": ("replace", UPDATE),
    "the sync of its directory": ("fsync", UPDATE + r"[^/]*$"),
    "its record": ("commit", r"INTO answers.*'client-2'"),
}
"""Where the second client's update is stored, by what fails there."""

ENDING = {
    "the record of a sample": ("commit", r"INTO calls.*'sample'"),
    "the record of a training": ("commit", r"INTO calls.*'train'"),
    "the record of a validation": ("commit", r"INTO calls.*'validate'"),
    "the record of a publication": ("commit", r"INTO calls.*'publish'"),
    "the record of a round": ("commit", r"INTO rounds"),
    "the record of the end": ("commit", r"INTO run .*'ended'"),
    "the history": ("write", r"history\.jsonl"),
    "the history's sync": ("fsync", r"history\.jsonl"),
    "the reserve's file": ("open", r"\.reserve"),
    "the reserve": ("posix_fallocate", r"\.reserve"),
    "the reserve's release": ("unlink", r"\.reserve"),
    "the next model's directory": ("mkdir", r"\.models/2$"),
    "the next model": ("pwritev", r"\.models/2/"),
    "the published model's link": ("link", r"\.published/"),
    "the published model's sync": ("fsync", r"\.models/2/"),
    "the published model's name": ("replace", r"\.published/"),
    "the published model's directory": ("fsync", r"\.published$"),
    "the last model's link": ("link", r"\.model\.[0-9a-f]+"),
    "the last model's name": ("replace", r"/model\.safetensors$"),
}
"""Where a run writes what it cannot go on without."""

AFTER_GOODBYE = ("the history's sync", "the record of the end")
"""Where a run writes when its clients have been told that it is done."""

STARTING = {
    "the directory": ("mkdir", r"out$"),
    "the lock": ("open", r"run\.lock"),
    "run.json": ("create", r"run\.json"),
    "run.json's sync": ("fsync", r"run\.json"),
    "the history's file": ("open", r"history\.jsonl"),
    "the audit log": ("open", r"audit\.jsonl"),
    "the record": ("commit", r"CREATE TABLE"),
    "the record's facts": ("commit", r"INTO run .*'contract'"),
    "the first model": ("pwritev", r"\.models/1/"),
}
"""Where a run begins."""

LIVING = {
    "a model's download": ("preadv", r"\.models/1/"),
    "the sync of all updates' directory": ("fsync", r"\.updates$"),
}
"""Where any client may meet a fault, once."""

ERRORS = {"full": FULL, "broken": BROKEN, "read-only": READ_ONLY}


def usual_error(call: str) -> int:
    """The error that a call meets most."""
    return {"fsync": BROKEN, "preadv": BROKEN, "unlink": READ_ONLY}.get(call, FULL)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    hasten(monkeypatch)
    return FailingDisk(monkeypatch)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory where there is one: these tests make errors, and need no disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, kernels: None) -> Report:
    """The job with nothing wrong: the bits that it must have in the end."""
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        directory = tmp_path_factory.mktemp("undisturbed")
        report = DiskJob(directory / "job").start(directory / "out")
    assert report.error is None and set(report.receipts.values()) == {1}
    return report


def require_one_line(report: Report, fault: Fault, place: Path) -> str:
    """The operator reads one line about a fault. It says where and what to do. No client is told of the place."""
    assert fault.hits, "the fault was never met"
    lines = report.lines_about(fault)
    assert len(lines) == 1, report.lines
    assert str(place) in lines[0]
    assert any(advice in lines[0] for advice in ("free space there", "check the disk", "make it writable"))
    require_silence(report, fault, place)
    return lines[0]


def require_silence(report: Report, fault: Fault, place: Path) -> None:
    """Clients are told no path and no reason of the server, and the operator reads no traceback."""
    assert not any("Traceback" in line for line in report.lines)
    told = [*report.told, *report.refusals]
    assert not [text for text in told if str(place) in text or any(reason in text for reason in fault.reasons)], told


def history_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def once_each(rounds: int = 2) -> Counter[tuple[str, int]]:
    return Counter({(client, number): 1 for client in CLIENTS for number in range(1, rounds + 1)})


def fail_a_client(directory: Path, disk: FailingDisk, fault: Fault, undisturbed: Report, **how: Any) -> None:
    """An answer that cannot be stored is asked for again; the others count, and the bits are right."""
    job, out, stored = DiskJob(directory / "job"), directory / "out", []
    disk.fault = fault

    def watch(event: Event) -> None:
        if isinstance(event, ClientFailed):
            fault.lift()
        # Later answers may be observed after the run has removed its updates.
        if isinstance(event, TaskAnswered) and (event.client, event.task, event.round) == ("client-2", "train", 1):
            stored.append(len(list((out / ".updates").glob("2-client-2-*"))))

    report = job.start(out, observe=watch, **how)
    assert report.error is None, report.lines
    line = require_one_line(report, fault, out)
    assert line.startswith("client-2 failed in train: "), line
    assert report.refusals == [GENERIC]
    assert stored[0] == 1, "the space of an update without a receipt is given back"
    assert report.values == undisturbed.values and report.receipts == undisturbed.receipts
    assert job.trained == once_each()
    assert [entry["asked_again"] for entry in history_of(out)] == [1, 0]


@pytest.mark.parametrize("where", STORING)
def test_an_answer_that_cannot_be_stored_is_asked_for_again(
    where: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    call, pattern = STORING[where]
    fail_a_client(place, disk, Fault(call, pattern, usual_error(call)), undisturbed)


@pytest.mark.parametrize("where", LIVING)
def test_a_fault_that_any_client_may_meet_costs_one_of_them_an_attempt(
    where: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    fault, job = Fault(*LIVING[where], BROKEN, times=1), DiskJob(place / "job")

    def watch(event: Event) -> None:
        if isinstance(event, TaskSent):
            disk.fault = fault

    report = job.start(place / "out", observe=watch)
    assert report.error is None, report.lines
    require_one_line(report, fault, place / "out")
    assert len(report.refusals) == 1 and report.refusals[0] in (GENERIC, "the server could not read the model")
    assert report.values == undisturbed.values and report.receipts == undisturbed.receipts
    assert job.trained == once_each()


def test_a_round_counts_without_an_answer_that_cannot_be_stored(place: Path, disk: FailingDisk) -> None:
    fault = disk.fault = Fault("pwritev", UPDATE, FULL)
    job = DiskJob(place / "job", quorum=2, on_quorum_failure="fail")

    def watch(event: Event) -> None:
        if isinstance(event, ClientFailed):
            fault.lift()

    report = job.start(place / "out", observe=watch)
    assert report.error is None, report.lines
    require_one_line(report, fault, place / "out")
    rounds = history_of(place / "out")
    assert [sorted(entry["updates"]) for entry in rounds] == [["client-1", "client-3"], list(CLIENTS)]
    assert report.receipts["client-2", "train", 1] == 0 and report.receipts["client-2", "train", 2] == 1


def end_and_go_on(directory: Path, disk: FailingDisk, fault: Fault, undisturbed: Report, **how: Any) -> None:
    """A run that its disk has ended goes on: nothing with a receipt is asked for again, and the bits are right."""
    job, out = DiskJob(directory / "job"), directory / "out"

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted):
            disk.fault = fault

    first = job.start(out, observe=watch, **how)
    assert isinstance(first.error, DiskError), first.lines
    line = require_one_line(first, fault, out)
    assert line.endswith("then start again: a run that is not over goes on")
    # With receipts for what is on the disk, clients get no goodbye: they wait for the server that goes on.
    is_awaited = how.get("durability", "disk") == "disk"
    is_late = (fault.call, fault.place) in [ENDING[where] for where in AFTER_GOODBYE]
    assert first.told.count(DONE) == (len(CLIENTS) if is_late else 0), first.told
    assert first.told.count(ENDED) == (0 if is_awaited or is_late else len(CLIENTS)), first.told
    fault.lift()
    second = job.start(out, **how)
    assert second.error is None, second.lines
    assert second.values == undisturbed.values
    assert [entry["round"] for entry in history_of(out)] == [1, 2]
    if how.get("durability", "disk") == "disk":
        assert first.receipts + second.receipts == undisturbed.receipts, (first.receipts, second.receipts)
        assert job.trained == once_each()


@pytest.mark.parametrize("where", ENDING)
def test_a_run_that_its_disk_has_ended_goes_on(where: str, place: Path, disk: FailingDisk, undisturbed: Report) -> None:
    call, pattern = ENDING[where]
    end_and_go_on(place, disk, Fault(call, pattern, usual_error(call)), undisturbed)


@pytest.mark.parametrize("where", ["the record of a round", *AFTER_GOODBYE])
def test_a_run_in_memory_that_its_disk_has_ended_goes_on(
    where: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    call, pattern = ENDING[where]
    end_and_go_on(place, disk, Fault(call, pattern, usual_error(call)), undisturbed, durability="memory")


@pytest.mark.parametrize("skip", [0, 1], ids=["at the restart", "when it is combined"])
@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_an_update_with_a_receipt_that_the_disk_loses_is_asked_for_again(
    skip: int, plan: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    """The restarted server reads an update to verify it, and again to combine it."""
    job, out = DiskJob(place / "job"), place / "out"
    disk.fault = Fault(*ENDING["the record of a training"], FULL)
    first = job.start(out, plan=plan)
    assert isinstance(first.error, DiskError)
    fault = disk.fault = Fault("preadv", UPDATE, BROKEN, times=1, skip=skip)
    second = job.start(out, plan=plan)
    assert second.error is None and fault.hits == 1, second.lines
    (line,) = [line for line in second.lines if line.startswith("client-2 failed in train: ")]
    assert "the disk does not keep it: " in line and line.endswith("; check the disk")
    require_silence(second, fault, out)
    assert second.values == undisturbed.values
    again = Counter({("client-2", "train", 1): 1})
    assert first.receipts + second.receipts == undisturbed.receipts + again


def fail_the_start(directory: Path, disk: FailingDisk, fault: Fault, undisturbed: Report, **how: Any) -> None:
    """A run that cannot begin says why in one line, before it listens, and leaves nothing that the next one meets."""
    job, out = DiskJob(directory / "job"), directory / "out"
    disk.fault = fault
    first = job.start(out, **how)
    assert isinstance(first.error, DiskError | JobError) and not first.told
    require_one_line(first, fault, out)
    fault.lift()
    second = job.start(out, **how)
    assert second.error is None, second.lines
    assert second.values == undisturbed.values and second.receipts == undisturbed.receipts


@pytest.mark.parametrize("where", STARTING)
def test_a_run_that_cannot_begin_says_why(where: str, place: Path, disk: FailingDisk, undisturbed: Report) -> None:
    fail_the_start(place, disk, Fault(*STARTING[where], READ_ONLY), undisturbed)


WRITING = "open|create|mkdir|truncate|replace|link|unlink|write|pwrite|pwritev|posix_fallocate|commit"


@pytest.mark.parametrize("number", ERRORS.values(), ids=ERRORS)
def test_a_file_system_that_takes_nothing_any_more_fails_the_round(
    number: int, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    """From the first answer of the second round on. The contract's attempts are used up, and the run goes on later."""
    job, out = DiskJob(place / "job", quorum_retries=2), place / "out"
    fault = Fault(WRITING, f"^{out}|INTO", number)

    def watch(event: Event) -> None:
        if isinstance(event, TaskAnswered) and event.round == 2:
            disk.fault = fault

    first = job.start(out, observe=watch)
    assert isinstance(first.error, QuorumError | DiskError), first.lines
    require_silence(first, fault, out)
    fault.lift()
    second = job.start(out)
    assert second.error is None, second.lines
    assert second.values == undisturbed.values and first.receipts + second.receipts == undisturbed.receipts
    assert [entry["round"] for entry in history_of(out)] == [1, 2]


def test_entries_of_the_audit_log_wait_for_the_disk(place: Path, disk: FailingDisk, undisturbed: Report) -> None:
    fault, out = Fault("write", r"audit\.jsonl", FULL), place / "out"

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted):
            disk.fault = fault
        if isinstance(event, TaskAnswered) and event.round == 2 and event.task == "validate":
            fault.lift()

    report = DiskJob(place / "job").start(out, observe=watch)
    assert report.error is None and fault.hits > 1, report.lines
    require_audit_log(report, fault, out, undisturbed)
    assert [line for line in report.lines if line.endswith("is written again")]


def test_an_audit_log_that_cannot_be_synced_says_so_once(place: Path, disk: FailingDisk, undisturbed: Report) -> None:
    fault = disk.fault = Fault("fsync", r"audit\.jsonl", BROKEN)
    report = DiskJob(place / "job").start(place / "out")
    assert report.error is None and fault.hits > 1, report.lines
    require_audit_log(report, fault, place / "out", undisturbed)


def require_audit_log(report: Report, fault: Fault, out: Path, undisturbed: Report) -> None:
    """One line says what is wrong with the log, and in the end it has all entries."""
    (line,) = report.lines_about(fault)
    assert str(out / AUDIT_FILE) in line and "; the run goes on" in line
    require_silence(report, fault, out)
    assert report.values == undisturbed.values
    found = verify(out / AUDIT_FILE)
    # A start, three joins, twelve receipts, two publications and the end.
    assert found.fault is None and found.entries == 19


OVER_GRPC = ["a piece", "the sync of a segment", "its record"]


@pytest.mark.parametrize("where", OVER_GRPC)
def test_an_answer_over_grpc_that_cannot_be_stored(
    where: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    call, pattern = STORING[where]
    how = {"transport": "grpc", "plan": "streaming"}
    fail_a_client(place, disk, Fault(call, pattern, usual_error(call)), undisturbed, **how)


def test_a_download_over_grpc_that_the_disk_does_not_give(place: Path, disk: FailingDisk, undisturbed: Report) -> None:
    fault = Fault(*LIVING["a model's download"], BROKEN, times=1)

    def watch(event: Event) -> None:
        if isinstance(event, TaskSent):
            disk.fault = fault

    report = DiskJob(place / "job").start(place / "out", transport="grpc", observe=watch)
    assert report.error is None, report.lines
    require_one_line(report, fault, place / "out")
    assert report.refusals == ["the server could not read the model"]
    assert report.values == undisturbed.values


@pytest.mark.parametrize("where", ["the record of a round", "the last model's name"])
def test_a_run_over_grpc_that_its_disk_has_ended_goes_on(
    where: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    call, pattern = ENDING[where]
    how = {"transport": "grpc", "plan": "streaming"}
    end_and_go_on(place, disk, Fault(call, pattern, FULL), undisturbed, **how)


# Not with the plan streaming: its models are in memory.
IN_FILES = ("the next model", "the next model's directory", "the published model's link", "the published model's sync")
MATRIX = [
    (where, number, plan, durability)
    for where in (*STORING, *ENDING, *STARTING)
    for number in ERRORS
    for plan in ("batch", "streaming")
    for durability in ("disk", "memory")
    if not (durability == "memory" and where in STORING)  # updates are in memory, and answers are not recorded
    if not (plan == "streaming" and where in (*IN_FILES, "the first model"))
    if not (number == "full" and "unlink" in dict(ENDING).get(where, ()))
]


@pytest.mark.stress
@pytest.mark.parametrize(("where", "number", "plan", "durability"), MATRIX)
def test_every_error_at_every_place(
    where: str, number: str, plan: str, durability: str, place: Path, disk: FailingDisk, undisturbed: Report
) -> None:
    how = {"plan": plan, "durability": durability}
    fault = Fault(*(STORING | ENDING | STARTING)[where], ERRORS[number])
    if where in STORING:
        fail_a_client(place, disk, fault, undisturbed, **how)
    elif where in ENDING:
        end_and_go_on(place, disk, fault, undisturbed, **how)
    else:
        fail_the_start(place, disk, fault, undisturbed, **how)
