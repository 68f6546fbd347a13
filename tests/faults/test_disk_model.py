"""The model of a disk after a power loss: what it keeps, what it may lose, and each kind of loss."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flcore.model.atomic_replace import sync_directory
from tests.faults.disk_model import Content, images
from tests.faults.disk_recorder import DiskRecorder

OLD, NEW = b"o" * 10_000, b"n" * 12_000


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def contents(tmp_path: Path, program: Callable[[Path], None], *, torn: int = 300) -> list[Content]:
    """Return the different contents that a disk may have at a program's end. Its last operation is the end."""
    root = tmp_path / "root"
    root.mkdir()
    recorder = DiskRecorder(root)
    with recorder.recording():
        program(root)
    found: dict[int, Content] = {}
    for image in images(recorder.log, torn, seed=1):
        if image.position == len(recorder.log):
            found[hash(tuple(image.content.items()))] = image.content
    return list(found.values())


def test_what_was_synced_is_there_and_nothing_else_can_be(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        (root / "a").write_bytes(NEW)
        sync_file(root / "a")
        sync_directory(root)

    assert contents(tmp_path, program) == [{"a": NEW}]


def test_a_synced_file_may_lose_its_name(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        (root / "a").write_bytes(NEW)
        sync_file(root / "a")

    found = contents(tmp_path, program)
    assert sorted(found, key=len) == [{}, {"a": NEW}]


def test_a_synced_name_may_lose_its_data_in_each_way(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        (root / "a").write_bytes(NEW)
        sync_directory(root)

    data = [content["a"] or b"" for content in contents(tmp_path, program)]
    assert b"" in data and NEW in data and bytes(len(NEW)) in data
    assert any(NEW.startswith(each) and len(each) % 4096 for each in data), "a prefix within a page"
    assert any(each.startswith(bytes(4096)) and NEW[:4096] in each[4096:] for each in data), "a later page alone"


def test_an_overwritten_file_may_have_old_and_new_pages(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        (root / "a").write_bytes(OLD)
        sync_file(root / "a")
        sync_directory(root)
        with (root / "a").open("r+b") as file:
            file.write(NEW)

    data = [content["a"] or b"" for content in contents(tmp_path, program)]
    assert OLD in data and NEW in data
    assert any(each[:4096] == OLD[:4096] and each[4096:8192] == NEW[4096:8192] for each in data)
    assert all(len(each) >= len(OLD) for each in data), "nothing has truncated it"


def test_changes_of_names_may_be_lost_in_any_order_but_a_rename_is_atomic(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        for name in ("a", "b", "c"):
            (root / name).write_bytes(NEW)
            sync_file(root / name)
        sync_directory(root)
        (root / "a").replace(root / "b")
        (root / "c").unlink()

    found = {" ".join(sorted(content)) for content in contents(tmp_path, program)}
    assert found == {"a b c", "b c", "a b", "b"}


def test_a_directory_takes_what_is_in_it_along(tmp_path: Path) -> None:
    def program(root: Path) -> None:
        (root / "d").mkdir()
        (root / "d/a").write_bytes(NEW)
        sync_file(root / "d/a")
        sync_directory(root / "d")

    assert sorted(contents(tmp_path, program), key=len) == [{}, {"d": None, "d/a": NEW}]


@pytest.mark.parametrize("torn", [0, 3])
def test_each_position_has_its_images_and_knows_the_marks_before_it(tmp_path: Path, torn: int) -> None:
    recorder = DiskRecorder(tmp_path)
    with recorder.recording():
        (tmp_path / "a").write_bytes(NEW)
        recorder.mark("written")
        (tmp_path / "b").write_bytes(NEW)
    found = list(images(recorder.log, torn, seed=1))
    assert [image.position for image in found] == [position for position in range(6) for _ in range(2 + torn)]
    assert [len(image.marks) for image in found] == [0] * 3 * (2 + torn) + [1] * 3 * (2 + torn)
    assert [image.content for image in images(recorder.log, torn, seed=1)] == [image.content for image in found]
