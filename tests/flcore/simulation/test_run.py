"""`flcore.run` on a machine as it is: other files about, no temporary directory, processes forked, threads replaced."""

import errno
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flcore
from flcore import FlcoreError, JobError, QuorumError

TOML = """
name = "t"
clients = ["a", "b"]
[server]
model = "t.py:init"
rounds = 2
[client]
executor = "t.py"
[tasks.train]
returns = "weights"
"""
CODE = """
import numpy as np, flcore
def init(seed): return {"w": np.zeros(3, np.float32)}
def train(model, task): return flcore.Update({"w": model["w"] + 1}, weight=1)
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write(tmp_path / "job", CODE)


def write(directory: Path, code: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "job.toml").write_text(TOML)
    (directory / "t.py").write_text(code)
    return directory


def result(job: Path | flcore.Job, workers: int) -> list[float]:
    values: list[float] = flcore.run(job, workers=workers).model.arrays()["w"].tolist()
    return values


@pytest.mark.parametrize("workers", [0, 1])
def test_an_edited_job_that_is_run_again(job: Path, workers: int) -> None:
    loaded = flcore.Job.load(job)
    assert result(loaded, workers) == [2, 2, 2]
    write(job, CODE.replace("zeros", "ones").replace("+ 1", "+ 3"))
    assert result(job, workers) == result(loaded, workers) == [7, 7, 7]


def test_workers_do_not_look_into_the_working_directory(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("secrets.py", "copy.py", "numpy.py", "flcore.py"):
        (tmp_path / name).write_text("raise SystemExit('this is mine')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as in a notebook
    assert result(job, 1) == [2, 2, 2]


@pytest.mark.parametrize("entry", ["src", "./src", "its path"])
def test_workers_import_what_this_process_does(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/my_network_of_mine.py").write_text("STEP = 2")
    write(job, CODE.replace("flcore\n", "flcore, my_network_of_mine\n", 1).replace("+ 1", "+ my_network_of_mine.STEP"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "src") if entry == "its path" else entry)
    for workers in (0, 1):
        assert result(job, workers) == [4, 4, 4]
    sys.modules.pop("my_network_of_mine")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_clients_code_did_wrong_is_told_once(job: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    write(job, CODE.replace('model["w"]', "deep(model)") + "def deep(model): return model['weigth']\n")
    with pytest.raises(QuorumError, match="task 'train' raised KeyError: 'weigth'"):
        flcore.run(job, workers=workers)
    [told] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "round 1, task 'train' failed" in told and "t.py" in told and "line 5, in deep" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_a_site_that_cannot_begin_is_told_where(job: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "class Client:\n    def __init__(self, site): open('/nowhere/at/all')\n    def train(self, model, task): ...\n"
    )
    write(job, CODE + code)
    (job / "job.toml").write_text(TOML.replace('"t.py"', '"t.py:Client"'))
    with pytest.raises(FlcoreError, match="FileNotFoundError"):
        flcore.run(job, workers=workers)
    assert "line 6, in __init__" in caplog.text


def test_what_code_prints_does_no_harm(job: Path) -> None:
    write(
        job,
        CODE + "import os, sys\nprint('[1, 2]')\nos.write(1, b'{\\xff\\n')\nprint('x' * 200_000, file=sys.stderr)\n",
    )
    assert result(job, 1) == [2, 2, 2]


def test_a_run_needs_no_temporary_directory(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    flcore.run(job, workers=1, out=tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("out", ["/proc/results", "file/results"])
def test_a_place_for_results_that_cannot_be_written_to_is_refused_at_once(job: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    write(job, CODE.replace("return flcore", "open(__file__ + '.trained', 'w').close(); return flcore"))
    with pytest.raises(JobError, match=r"expected a directory that can be written to, got .*results"):
        flcore.run(job, workers=0, out=tmp_path / out)
    assert not list(job.glob("*.trained"))


def test_workers_that_cannot_all_be_started_end(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        if started:
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(start(*arguments, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="Too many open files"):
        flcore.run(job, workers=2)
    assert started[0].poll() is not None


FORKED = """
import os, sys, flcore
job, workers = sys.argv[1], int(sys.argv[2])
flcore.run(job, workers=1)
child = os.fork()
if child == 0:
    try:
        print("ran", len(flcore.run(job, workers=workers).history), flush=True)
    except flcore.FlcoreError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(("workers", "said"), [(1, "a fork of process"), (0, "ran 2")])
def test_a_run_in_a_process_that_was_forked_after_one(job: Path, workers: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(job), str(workers)], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert said in done.stdout


@pytest.mark.parametrize(
    ("module", "function", "patched"),
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("gevent.monkey", "is_module_patched", "queue"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
    ],
)
def test_a_run_where_threads_are_replaced(
    job: Path, monkeypatch: pytest.MonkeyPatch, module: str, function: str, patched: str
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: lambda name: name == "socket"}))
    assert result(job, 0) == [2, 2, 2]
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: lambda name: name == patched}))
    with pytest.raises(FlcoreError, match=rf"own {patched}, which {module.partition('.')[0]} has replaced"):
        flcore.run(job, workers=0)


def test_importing_flcore_where_it_cannot_run_says_so() -> None:
    child = "import sys, os; sys.modules['fcntl'] = None; del os.preadv; import flcore"
    done = subprocess.run([sys.executable, "-c", child], stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert "ImportError: flcore does not support this system: expected POSIX" in done.stderr


KEEPING = """
import numpy as np, flcore
def init(seed): return {"w": np.zeros(3, np.float32)}
def train(model, task):
    kept = task.site.state_directory / "rounds"
    seen = kept.read_text() if kept.exists() else ""
    kept.write_text(f"{seen}{task.site.name}{task.round}")
    return flcore.Update({"w": model["w"] + len(seen)}, weight=1)
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("has_out", [False, True])
def test_each_client_has_a_directory_between_rounds(tmp_path: Path, workers: int, has_out: bool) -> None:
    out = tmp_path / "out" if has_out else None
    outcome = flcore.run(write(tmp_path / "job", KEEPING), workers=workers, rounds=3, out=out)
    assert outcome.model.arrays()["w"].tolist() == [6, 6, 6]  # 0 + 2 + 4: each has seen its own rounds only
    assert out is None or not (out / ".clients").exists()
