"""A job's code: its own files come first and are read anew. The digest covers exactly what can be imported."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from flcore import Job, JobError
from flcore.job.code import JobCode, code_digest, code_files

TOML = """
name = "small"
clients = 2
[server]
model = "train.py:initial_model"
rounds = 1
[client]
executor = "train.py"
[tasks.train]
returns = "weights"
"""


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


def value(directory: Path, reference: str = "train.py:value") -> Any:
    found = JobCode(directory).load(reference, "here")
    return found() if callable(found) else found


@pytest.mark.parametrize(
    "train", ["from helper import value", "def value():\n    import helper\n    return helper.value"]
)
def test_two_jobs_have_helpers_of_one_name(tmp_path: Path, train: str) -> None:
    one = JobCode(write(tmp_path / "one", {"train.py": train, "helper.py": "value = 1"}))
    two = JobCode(write(tmp_path / "two", {"train.py": train, "helper.py": "value = 2"}))
    loaded = [code.load("train.py:value", "here") for code in (one, two)]
    assert [found() if callable(found) else found for found in loaded] == [1, 2]


def test_edited_files_are_read_by_the_next_job(tmp_path: Path) -> None:
    for number in (1, 2):  # as long, and within the same second
        write(tmp_path, {"train.py": "from helper import value", "helper.py": f"value = {number}"})
        assert value(tmp_path) == number
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_job_is_loaded_once(tmp_path: Path) -> None:
    write(
        tmp_path, {"job.toml": TOML, "train.py": "import helper\nvalue = helper.made", "helper.py": "made = object()"}
    )
    job = Job.load(tmp_path)
    assert job.load_reference("one", "train.py:value") is job.load_reference("two", "helper.py:made")
    assert job.load_reference("three", "helper:made") is job.load_reference("two", "helper.py:made")
    assert Job.load(tmp_path).load_reference("one", "train.py:value") is not job.load_reference("one", "train.py:value")


def test_the_jobs_files_come_before_installed_ones_and_for_the_job_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.py": "import json, colorsys\nvalue = json.mine, colorsys.mine",
            "json.py": "mine = 1",
            "colorsys/__init__.py": "from .parts import mine",
            "colorsys/parts.py": "import json\nmine = json.mine + 1",
        },
    )
    before = list(sys.path)
    assert value(tmp_path) == (1, 2)
    assert sys.path == before and not hasattr(sys.modules["json"], "mine")


def test_a_directory_of_data_takes_no_librarys_place(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "import json\nvalue = json.dumps(1)", "json/a.csv": "1"})
    assert value(tmp_path) == "1"
    write(tmp_path, {"json/more.py": ""})
    with pytest.raises(AttributeError, match="no attribute 'dumps'"):
        value(tmp_path)


def test_each_way_to_import(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.py": "import pack.inner.deep, pack.inner.deep as named\nfrom pack import inner\n"
            "from pack.inner import *\nfrom . import other\n"
            "value = [pack.inner.deep.name, named.name, inner.deep.name, name, other.name]",
            "pack/__init__.py": "",
            "pack/inner/deep.py": "name = 'deep'",
            "pack/inner/__init__.py": "from ..inner.deep import name\nfrom .. import inner\n__all__ = ['name']",
            "other.py": "import pack.inner as inner\nname = inner.name",
        },
    )
    assert value(tmp_path) == ["deep"] * 5


def test_files_in_a_directory_of_their_own_find_their_neighbours_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "client/train.py": "import helper, shared\nvalue = helper.name, shared.name",
            "client/helper.py": "name = 'client'",
            "server-side/model.v2.py": "import helper, shared\nvalue = helper.name, shared.name",
            "server-side/helper.py": "name = 'server'",
            "helper.py": "name = 'nobody'",
            "shared.py": "name = 'both'",
        },
    )
    code = JobCode(tmp_path)
    assert code.load("client/train.py:value", "here") == ("client", "both")
    assert code.load("server-side/model.v2.py:value", "here") == ("server", "both")


def test_classes_know_their_module(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.py": "from __future__ import annotations\nfrom dataclasses import dataclass\nimport pickle\n"
            "@dataclass\nclass Net:\n    width: int\n"
            "def value():\n    return pickle.loads(pickle.dumps(Net(3))).width"
        },
    )
    assert value(tmp_path) == 3


def test_the_modules_of_a_job_end_with_it(tmp_path: Path) -> None:
    def ours() -> set[str]:
        return {name for name in sys.modules if name.startswith("flcore_job_")}

    write(
        tmp_path, {"job.toml": TOML, "train.py": "import helper\ndef late():\n    import later\n    return later.value"}
    )
    write(tmp_path, {"helper.py": "", "later.py": "value = 5"})
    before = ours()
    late = Job.load(tmp_path).load_reference("here", "train.py:late")
    gc.collect()
    assert ours() <= before
    assert late() == 5, "who has kept a function can still call it"


@pytest.mark.parametrize("key", ['executor = "train.py"', 'model = "train.py:'])
@pytest.mark.parametrize("outside", ["../shared.py", "/shared.py", "pack/../../shared.py"])
def test_a_file_outside_the_jobs_directory_is_none_of_the_job(tmp_path: Path, key: str, outside: str) -> None:
    write(tmp_path, {"job.toml": TOML.replace(key, key.replace("train.py", outside))})
    with pytest.raises(JobError, match=f"job.toml: job: expected code in the job's directory, got '{outside}'"):
        Job.load(tmp_path)


def test_code_is_what_can_be_imported(tmp_path: Path) -> None:
    code = ["train.py", "pack/__init__.py", "pack/deep/a.py", "fast.so"]
    rest = [
        ".venv/lib/some.py",
        ".ipynb_checkpoints/t-checkpoint.py",
        "venv/pyvenv.cfg",
        "venv/bin/a.py",
        "my-notes/a.py",
    ]
    write(tmp_path, dict.fromkeys([*code, *rest, "data/a.csv", "2-old.py"], ""))
    (tmp_path / "pack/round").symlink_to(tmp_path / "pack")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    found = {path.relative_to(tmp_path).as_posix() for path in code_files(tmp_path)}
    assert set(code) <= found and not set(rest) & found
    assert found - set(code) <= {"pack/round/__init__.py", "pack/round/deep/a.py"}
    for name in found - {"fast.so"}:
        JobCode(tmp_path)._module(name.removesuffix(".py").replace("/", "."))
    with pytest.raises(ImportError):
        JobCode(tmp_path)._module("venv.bin.a")


def test_the_digest_covers_files_that_only_the_contract_can_name(tmp_path: Path) -> None:
    toml = TOML.replace('executor = "train.py"', 'executor = "my-site/run-it.py"')
    write(
        tmp_path,
        {"job.toml": toml, "train.py": "", "my-site/run-it.py": "", "my-site/near.py": "", "other-site/x.py": ""},
    )
    digests = [Job.load(tmp_path).code_digest]
    for edited in ("my-site/run-it.py", "my-site/near.py", "other-site/x.py"):
        write(tmp_path, {edited: "edited = 1"})
        digests.append(Job.load(tmp_path).code_digest)
    assert len(set(digests)) == 3 and digests[2] == digests[3]


def test_the_digest_is_the_same_wherever_the_job_is(tmp_path: Path) -> None:
    files = {"train.py": "a = 1", "pack/b.py": "b = 2"}
    one, two = write(tmp_path / "one", files), write(tmp_path / "two", dict(reversed(files.items())))
    assert code_digest(one) == code_digest(two)
    (two / "pack/b.py").rename(two / "pack/c.py")
    assert code_digest(one) != code_digest(two)
