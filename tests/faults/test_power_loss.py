"""Power loss at any time: no receipt without its data, no torn model, and no check that would not notice."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from flcore.server.run_state import RunState
from tests.faults.disk_model import images
from tests.faults.disk_recorder import DiskRecorder
from tests.faults.examination import Examination, without_syncs
from tests.faults.model_replacement import (
    ONE_FILE,
    SHARDS,
    check_replacement,
    record_publications,
    record_saves,
)
from tests.faults.operations import Mark, NameChange, Operation, Sync, Write
from tests.faults.server_run import ServerRun, check_continuation, check_image, record_restart, record_server

SEED = 20

REPLACEMENTS: dict[str, Callable[[Path], DiskRecorder]] = {
    "one file": lambda root: record_saves(root, [ONE_FILE] * 3, with_best=True),
    "shards": lambda root: record_saves(root, [SHARDS] * 3, with_best=True),
    "both": lambda root: record_saves(root, [ONE_FILE, SHARDS, ONE_FILE, ONE_FILE, SHARDS, SHARDS], with_best=True),
    "links": lambda root: record_publications(root, 3, by_copy=False),
    "copies": lambda root: record_publications(root, 3, by_copy=True),
}


def recorded(tmp_path: Path, rounds: int = 1, plan: str = "batch") -> ServerRun:
    (tmp_path / "root").mkdir()
    (tmp_path / "job").mkdir()
    return record_server(tmp_path / "root", tmp_path / "job", rounds, plan)


def examine(run: ServerRun, log: Sequence[Operation], torn: int, stop_at: int = 5) -> Examination:
    return Examination.of(images(log, torn, SEED), log, partial(check_image, run), stop_at=stop_at)


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_no_receipt_is_without_its_data(tmp_path: Path, plan: str) -> None:
    run = recorded(tmp_path, plan=plan)
    examine(run, run.log, 3).require_success(500)


def test_the_server_goes_on_to_the_same_models(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    synced = [image for image in images(run.log, 0, SEED) if image.variant == "synced"]
    found = Examination.of(synced[::4], run.log, partial(check_continuation, run))
    found.require_success(40)


def restart_positions(log: Sequence[Operation]) -> list[int]:
    """Return the positions where a sync is next: a killed process has left there what the disk may still lose."""
    end = max(number for number, each in enumerate(log) if isinstance(each, Mark) and each.name == "finished")
    return [number for number in range(5, end) if isinstance(log[number], Sync)]


def examine_restarts(run: ServerRun, tmp_path: Path, positions: Sequence[int], torn: int) -> tuple[int, int]:
    """Kill the server at positions, restart it, and check images of what follows. Returns their number."""
    number = different = 0
    for position in positions:
        root = tmp_path / f"killed at {position}"
        root.mkdir()
        log = with_directories(record_restart(run, root, position))
        found = Examination.of(images(log, torn, SEED, first=position), log, partial(check_image, run), stop_at=1)
        assert not found.failures, f"killed at {position}, before {log[position]}: {found.failures[0]}"
        number, different = number + found.images, different + found.different
    return number, different


def test_an_update_is_synced_again_after_a_restart(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    directory = re.compile(r"new/run/\.updates/2-[^/]*")
    positions = [
        position
        for position in restart_positions(run.log)
        if isinstance(sync := run.log[position], Sync) and directory.fullmatch(sync.path)
    ]
    assert len(positions) == 2
    examine_restarts(run, tmp_path, positions, 0)


def test_a_record_without_an_answer_is_removed_as_a_whole(tmp_path: Path) -> None:
    """The server was killed when its database was written, and not synced yet. Its successor begins anew."""
    run = recorded(tmp_path)
    positions = [
        position
        for position in restart_positions(run.log)
        if isinstance(sync := run.log[position], Sync) and sync.path == "new/run/state.sqlite"
    ]
    examine_restarts(run, tmp_path, positions[:2], 4)


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_model_is_never_torn_and_never_older_than_the_last_one_published(tmp_path: Path, kind: str) -> None:
    log = REPLACEMENTS[kind](tmp_path).log
    Examination.of(images(log, 5, SEED), log, check_replacement).require_success(300)


MISSING_SYNCS = {
    "the name of an update's directory": r"new/run/\.updates",
    "the names of an update's files": r"new/run/\.updates/2-.*",
    "the data of an update": r"new/run/\.updates/2-.*/segment-\d\.arrows",
    "the description of an update": r"new/run/\.updates/2-.*/\.update\.json",
    "the record": r"new/run/state\.sqlite-wal",
    "the data of a model": r".*\.safetensors",
    "the name of a model": r"new/run/\.published",
}


@pytest.mark.parametrize("missing", MISSING_SYNCS)
def test_a_missing_sync_of_a_run_is_found(tmp_path: Path, missing: str) -> None:
    run = recorded(tmp_path)
    pattern = re.compile(MISSING_SYNCS[missing])
    faulty = without_syncs(with_directories(run.log), lambda path: pattern.fullmatch(path) is not None)
    assert examine(run, faulty, 4, stop_at=1).failures


def with_directories(log: Sequence[Operation]) -> list[Operation]:
    """Return the log of a server that syncs the names of its run's directories at once, so that other faults show."""
    longer: list[Operation] = []
    for operation in log:
        longer.append(operation)
        if isinstance(operation, NameChange) and operation.changes[0][1] in {"new", "run", ".updates"}:
            longer.append(Sync(operation.changes[0][0], "its directory"))
    return longer


def test_a_run_whose_directories_are_synced_has_no_receipt_without_its_data(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    examine(run, with_directories(run.log), 4).require_success(800)


@pytest.mark.parametrize("setting", ["NORMAL", "OFF"])
def test_a_record_that_does_not_sync_each_commit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    prepare = RunState._prepare

    def prepare_faulty(state: RunState, **options: bool) -> None:
        prepare(state, **options)
        state._connection.execute(f"PRAGMA synchronous = {setting}")

    monkeypatch.setattr(RunState, "_prepare", prepare_faulty)
    run = recorded(tmp_path)
    assert examine(run, with_directories(run.log), 4, stop_at=1).failures


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("one file", r"new/models/\.model\.\w+\.0\.partial"),
        ("one file", r"new/models"),
        ("one file", r"new"),
        ("one file", r"\."),
        ("shards", r"new/models/\.model\.\w+\.1\.partial"),
        ("shards", r"new/models/\.model\.\w+\.-1\.partial"),
        ("shards", r"new/models"),
        ("links", r"temporary/\d+/0\.safetensors"),
        ("copies", r"new/models/\.best\.\w+\.0\.partial"),
    ],
)
def test_a_missing_sync_of_a_model_is_found(tmp_path: Path, kind: str, missing: str) -> None:
    log = REPLACEMENTS[kind](tmp_path).log
    faulty = without_syncs(log, lambda path: re.fullmatch(missing, path) is not None)
    assert Examination.of(images(faulty, 8, SEED), faulty, check_replacement, stop_at=1).failures


def test_a_rename_before_the_sync_of_the_data_is_found(tmp_path: Path) -> None:
    log = REPLACEMENTS["one file"](tmp_path).log
    model = next(n for n, each in enumerate(log) if isinstance(each, NameChange) and ".partial to" in each.text)
    sync = max(n for n in range(model) if isinstance(each := log[n], Sync) and each.path.endswith(".partial"))
    early = [*log[:sync], *log[sync + 1 : model + 2], log[sync], *log[model + 2 :]]
    assert Examination.of(images(early, 6, SEED), early, check_replacement, stop_at=1).failures


def test_a_receipt_before_the_record_is_found(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    log = with_directories(run.log)
    receipt = next(number for number, each in enumerate(log) if isinstance(each, Mark) and each.name == "receipt")
    commit = max(n for n in range(receipt) if isinstance(each := log[n], Sync) and each.path.endswith("-wal"))
    early = [*log[: commit - 1], log[receipt], *log[commit - 1 : receipt], *log[receipt + 1 :]]
    assert isinstance(log[commit - 1], Write | Sync)
    assert examine(run, early, 4, stop_at=1).failures


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_five_thousand_different_images_of_a_run(tmp_path: Path, plan: str) -> None:
    run = recorded(tmp_path, 4, plan)
    found = examine(run, run.log, 14)
    print(f"power loss, {plan}: {len(run.log)} operations, {found.images} images, {found.different} different")
    found.require_success(5000)
    assert found.different >= 5000


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_a_power_loss_after_a_killed_server_was_restarted(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    positions = restart_positions(run.log)
    number, different = examine_restarts(run, tmp_path, positions, 2)
    print(f"power loss after a restart: {len(positions)} restarts, {number} images, {different} different, seed {SEED}")


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_five_thousand_images_of_a_replaced_model(tmp_path: Path, kind: str) -> None:
    log = REPLACEMENTS[kind](tmp_path).log
    found = Examination.of(images(log, 200, SEED), log, check_replacement)
    print(f"power loss, {kind}: {len(log)} operations, {found.images} images, {found.different} different, seed {SEED}")
    found.require_success(5000)
