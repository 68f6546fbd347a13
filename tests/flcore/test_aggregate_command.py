"""`flcore aggregate`: as its page has it, and what it says when something is wrong."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import flcore
from tests.flcore.command import said
from tests.test_readme import ROOT, blocks, commands, shell

PAGE = (ROOT / "docs/checkpoints.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the checkpoints of the page: all ones but for a factor."""
    names = [
        "hospital-a",
        "hospital-b",
        *(f"{name}/model" for name in ("run-1", "run-2", "run-3", "math", "code", "base")),
    ]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        flcore.save({"w": np.full((2, 3), number, np.float32)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def value_of(path: Path) -> float:
    (value,) = set(flcore.open_model(path).tensor("w").astype(float).reshape(-1).tolist())
    return float(value)


def test_the_page_as_printed(folder: Path) -> None:
    (script,) = blocks("sh", PAGE)
    assert len(commands(script)) == 3
    printed = shell(script, folder)
    assert re.match(r"global\.safetensors: 2 checkpoints, 1 tensor, 6 parameters, 24 B in \d", printed)
    assert value_of(folder / "global.safetensors") == 0.75
    assert value_of(folder / "merged") == 3.0
    assert flcore.open_model(folder / "merged").spec.tensors[0].dtype == "bfloat16"
    assert value_of(folder / "both") == pytest.approx(7 + 0.4 * ((5 - 7) + (6 - 7)))


def test_weights_from_a_file(folder: Path) -> None:
    (table,) = blocks("text", PAGE)
    (folder / "weights.csv").write_text(table)
    given = ["hospital-b.safetensors", "hospital-a.safetensors"]
    printed = said("aggregate", *given, "--weights", "weights.csv", "--out", "global", "--json", cwd=folder)
    report = json.loads(printed)
    assert report["files"] == ["global/model.safetensors"] and report["parameters"] == 6
    assert value_of(folder / "global") == 0.75


A, B = "hospital-a.safetensors", "hospital-b.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([A, B, "--weight", "1"], "invalid value for --weight: expected 2 weights, one per checkpoint, got 1"),
        ([A, B, "--scale", "2"], "invalid value for --scale: it scales the differences from --base"),
        ([A, "--base", B, "--accumulate", "float32"], "cannot be combined with --base; leave them out"),
    ],
)
def test_options_that_do_not_fit_together(folder: Path, arguments: list[str], words: str) -> None:
    assert words in said("aggregate", *arguments, "--out", "x.safetensors", cwd=folder, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.safetensors"], "flcore: nowhere.safetensors: No such file or directory"),
        ([A, "weights.csv"], f"flcore: weights.csv is no safetensors file, but text, '{B},2': give"),
        ([A, B, "--weight", "1", "--weight", "-1"], f"flcore: checkpoint '{B}': a weight is a finite number >= 0"),
        ([A, B, "--rule", "krim"], "rule 'krim' does not exist; expected one of mean"),
        ([A, "--budget", "1KB"], "64MiB would do"),
        ([A, "--weights", "bad.csv"], "bad.csv, line 1: expected CHECKPOINT,WEIGHT, got 'hospital-a.safetensors,much'"),
        ([A, "--weights", "weights.csv"], f"weights.csv, line 1: '{B}' is not among the given checkpoints"),
        ([B, A, "--weights", "weights.csv"], f"weights.csv has no weight for '{A}'"),
        ([B, A, "--weights", "nowhere.csv"], "flcore: nowhere.csv: No such file or directory"),
        ([A, "--weights", "math"], "flcore: math: Is a directory"),
        ([A, "--base", B, "--scale", "inf"], "flcore: expected a finite scale, got inf"),
        ([A, "--base", B, "--weight", "nan"], f"flcore: checkpoint '{A}': expected a finite weight, got nan"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder: Path, arguments: list[str], words: str) -> None:
    (folder / "weights.csv").write_text(f"{B},2\n")
    (folder / "bad.csv").write_text(f"{A},much\n")
    printed = said("aggregate", *arguments, "--out", "x.safetensors", cwd=folder, code=1)
    assert words in printed and len(printed.splitlines()) == 1
    assert not (folder / "x.safetensors").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("first", ["", "checkpoint,weight\r\n"])
def test_weights_are_read_as_excel_writes_them(folder: Path, encoding: str, first: str) -> None:
    with (folder / "weights.csv").open("w", newline="", encoding=encoding) as file:
        file.write(f"{first}{A},1\r\n{B},3\r\n")
    said("aggregate", A, B, "--weights", "weights.csv", "--out", "global", cwd=folder)
    assert value_of(folder / "global") == 0.75


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,1".encode("utf-16"), "got UTF-16, by its byte order mark: save the file as UTF-8"),
        ("a,1".encode("utf-32"), "got UTF-32, by its byte order mark: save the file as UTF-8"),
        ("a,1".encode("utf-16-le"), "got a zero at byte 1"),
        ("modèle,1".encode("latin-1"), "got 0xe8 at byte 3: save the file as UTF-8"),
        (b'"' + b"a" * 200_000 + b'",1', "field larger than field limit"),
    ],
)
def test_weights_in_another_encoding_are_refused_by_its_name(folder: Path, content: bytes, words: str) -> None:
    (folder / "weights.csv").write_bytes(content)
    printed = said("aggregate", A, "--weights", "weights.csv", "--out", "x.safetensors", cwd=folder, code=1)
    assert words in printed and printed.startswith("flcore: weights.csv: expected a CSV file: ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    "out", ["Qwen2.5-7B-merged", "Llama-3.1/", "v1.0", "plain", "x.safetensors/", "deep/v1.0", "."]
)
def test_a_name_without_the_suffix_of_a_file_means_a_directory(folder: Path, out: str) -> None:
    said("aggregate", A, B, "--out", out, cwd=folder)
    assert value_of(folder / out / "model.safetensors") == 0.5


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "expected NAME.safetensors or a directory to write a model to, got ''"),
        (".safetensors", "expected NAME.safetensors or a directory to write a model to, got '.safetensors'"),
        ("model.safetensors.index.json", "expected NAME.safetensors or a directory to write a model to"),
        ("notes.txt", "cannot create the directory notes.txt: it, or a directory above it, is a file"),
        ("notes.txt/v1", "cannot create the directory notes.txt/v1: it, or a directory above it, is a file"),
        ("notes.txt/x.safetensors", "cannot create the directory notes.txt: it, or a directory above it, is a file"),
    ],
)
def test_a_place_where_nothing_can_be_is_refused(folder: Path, out: str, words: str) -> None:
    (folder / "notes.txt").write_text("mine")
    printed = said("aggregate", A, B, "--out", out, cwd=folder, code=1)
    assert words in printed and len(printed.splitlines()) == 1
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("base", [[], ["--base", "hospital-b.safetensors"]])
def test_a_checkpoint_of_another_dtype_is_refused_with_the_option_that_combines_it(
    folder: Path, base: list[str]
) -> None:
    flcore.save({"w": np.full((2, 3), 3, ml_dtypes.bfloat16)}, folder / "half v1.0")
    printed = said("aggregate", A, "half v1.0", *base, "--out", "x.safetensors", cwd=folder, code=1)
    assert printed.startswith(
        "flcore: checkpoint 'half v1.0', tensor 'w': expected float32 of shape (2, 3), got bfloat16"
    )
    assert "astype" not in printed and "client" not in printed and len(printed.splitlines()) == 1
    (option,) = re.findall("`(--dtype .*)`", printed)
    for first, second in ((A, "half v1.0"), ("half v1.0", A)):
        said("aggregate", first, second, *base, *shlex.split(option), "--out", "x.safetensors", cwd=folder)
        assert value_of(folder / "x.safetensors") == (2.0 if base else 1.5)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        (
            {"w": np.ones((2, 3), np.int32)},
            [],
            "tensor 'w': expected float32 of shape (2, 3), got int32 of shape (2, 3)\n",
        ),
        (
            {"w": np.ones((3, 2), np.float32)},
            [],
            "tensor 'w': expected float32 of shape (2, 3), got float32 of shape (3, 2)\n",
        ),
        ({"v": np.ones(3)}, [], "tensor 'w': it is missing"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, [], "tensor 'w': element 0 is nan"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, ["--base", "odd.safetensors"], "tensor 'w': element 0 is nan"),
    ],
)
def test_errors_call_a_checkpoint_a_checkpoint(
    folder: Path, arrays: flcore.Arrays, options: list[str], words: str
) -> None:
    flcore.save(arrays, folder / "odd.safetensors")
    given = [A] if options else [A, "odd.safetensors"]
    printed = said("aggregate", *given, *options, "--out", "x.safetensors", cwd=folder, code=1)
    assert f"flcore: checkpoint 'odd.safetensors', {words}" in printed


def test_errors_call_a_checkpoint_of_several_files_as_the_command_line_does(folder: Path) -> None:
    for name, shape in (("one", 2), ("two", 3)):
        flcore.save({"v": np.ones(9), "w": np.ones(shape)}, folder / name, shard_bytes=1)
    printed = said("aggregate", "one", "two/", "--out", "x.safetensors", cwd=folder, code=1)
    assert printed.startswith(
        "flcore: checkpoint 'two/', tensor 'w': expected float64 of shape (2,), got float64 of shape"
    )


def limited(folder: Path, limit: str, count: int) -> tuple[int, str]:
    """Aggregate copies of a checkpoint in a process with a limit of open files (`ulimit LIMIT`)."""
    command = shlex.join([sys.executable, "-m", "flcore", "aggregate", *[A] * count, "--out", "x.safetensors"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limit} && exec {command}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_more_checkpoints_than_the_soft_limit_of_open_files(folder: Path) -> None:
    code, printed = limited(folder, "-Sn 50", 100)
    assert code == 0 and "100 checkpoints" in printed, printed


def test_more_checkpoints_than_the_hard_limit_of_open_files(folder: Path) -> None:
    code, printed = limited(folder, "-n 50", 100)
    assert code == 1 and len(printed.splitlines()) == 1
    match = re.search(
        r"100 checkpoints at once take \d+ open files or more, and the limit is 50: (\d+) fit; (.*)", printed
    )
    assert match is not None and "the hard limit (`ulimit -Hn`) is 50: ask an administrator" in match[2]
    code, printed = limited(folder, "-n 50", int(match[1]))
    assert code == 0, printed
