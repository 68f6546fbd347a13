"""`flcore partition`, and the picture that it draws."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcore.partition import PartitionError, dirichlet, plot_partition, shards

LABELS = np.repeat(np.arange(4), 25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "flcore", "partition", *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_it_prints_who_has_what_and_writes_the_indices_and_a_plot(folder: Path) -> None:
    given = ("labels.npy", "--clients", "3", "--dirichlet", "0.5", "--seed", "2")
    done = command(folder, *given, "--out", "parts.npz", "--plot", "pictures/who.png")
    assert done.returncode == 0, done.stderr
    parts = dirichlet(LABELS, 3, 0.5, seed=2)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["client", "examples", "0", "1", "2", "3"]
    for number, part in enumerate(parts, 1):
        assert lines[number].split() == [
            f"client-{number}",
            str(len(part)),
            *map(str, np.bincount(LABELS[part], minlength=4)),
        ]
    assert lines[4:] == ["indices: parts.npz", "plot: pictures/who.png"]
    stored = np.load(folder / "parts.npz")
    assert [stored[f"client-{number}"].tolist() for number in (1, 2, 3)] == [part.tolist() for part in parts]
    assert (folder / "pictures/who.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ((), 2, "expected one of --dirichlet, --dirichlet-balanced, --shards, --quantity, got none; see"),
        (("--shards", "1", "--quantity", "1"), 2, "got --shards and --quantity; see"),
        (("--shards", "1", "--out", "parts.zip"), 2, "--out: expected a file that ends in .npz, got parts.zip"),
        (
            ("--shards", "90"),
            1,
            "per_client: expected at most 33, as 100 examples for 3 clients make no more shards, got 90",
        ),
        (("--dirichlet", "0"), 1, "alpha: expected a finite number > 0, got 0.0"),
        (("--shards", "1", "--plot", "who.zip"), 1, "who.zip: cannot be drawn: "),
    ],
)
def test_a_wrong_use_is_one_line(folder: Path, arguments: tuple[str, ...], code: int, error: str) -> None:
    done = command(folder, "labels.npy", "--clients", "3", *arguments)
    assert done.returncode == code and error in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("flcore: ")


def test_a_file_that_is_no_array_is_refused_and_nothing_is_unpickled(folder: Path) -> None:
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez(folder / "many.npz", LABELS)
    (folder / "text.npy").write_text("1 2 3")
    for name, error in (
        ("objects.npy", "objects.npy: expected a .npy file of numbers or strings"),
        ("many.npz", "many.npz: expected a .npy file with one array, got an archive"),
        ("text.npy", "text.npy: expected a .npy file of numbers or strings"),
        ("absent.npy", "absent.npy: No such file or directory"),
    ):
        done = command(folder, name, "--clients", "2", "--shards", "1")
        assert done.returncode == 1 and done.stderr.startswith(f"flcore: {error}"), done.stderr


def test_of_many_labels_the_table_has_their_number(folder: Path) -> None:
    np.save(folder / "labels.npy", np.arange(100))
    done = command(folder, "labels.npy", "--clients", "2", "--shards", "1")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["client", "examples", "labels"],
        ["client-1", "50", "50"],
        ["client-2", "50", "50"],
    ]


@pytest.mark.parametrize(("labels", "clients"), [(2, 1), (15, 5), (60, 90)])
def test_a_picture_of_any_size(tmp_path: Path, labels: int, clients: int) -> None:
    codes = np.arange(600) % labels
    plot_partition(codes, shards(codes, clients, 1), tmp_path / "who.svg", title="a title")
    drawn = (tmp_path / "who.svg").read_text()
    assert drawn.count("<path") > labels


def test_a_bar_is_as_long_as_a_client_has_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[list[int], list[int], list[int]]] = []
    original = Axes.barh

    def noting(self: Any, y: Any, width: Any, *, left: Any, **named: Any) -> Any:
        drawn.append((y.tolist(), width.tolist(), left.tolist()))
        return original(self, y, width, left=left, **named)

    monkeypatch.setattr(Axes, "barh", noting)
    parts = [np.array([0, 1, 25]), np.arange(30, 100)]
    labels = np.array(["_a", "b", "c", "d"])[LABELS]  # matplotlib hides names that begin with an underscore
    plot_partition(labels, parts, tmp_path / "who.png", names=["north", "south"])
    assert drawn == [([0], [2], [0]), ([0, 1], [1, 20], [2, 0]), ([1], [25], [20]), ([1], [25], [45])]


def test_names_are_as_many_as_clients(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="names: expected one for each of 2 clients, got 1"):
        plot_partition(LABELS, [np.array([0]), np.array([1])], tmp_path / "who.png", names=["north"])
