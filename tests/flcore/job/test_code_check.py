"""The check of a job's code before it is packed: syntax, and the functions that the contract names. Nothing is run."""

from pathlib import Path

import pytest

from flcore import Job
from flcore.errors import JobError
from flcore.job.bundled_jobs import BUNDLED_JOBS
from flcore.job.code_check import check_code

CONTRACT = """
name = "line"
clients = 2
[server]
model = "{model}"
workflow = "{workflow}"
rule = "{rule}"
rounds = 1
[client]
executor = "{executor}"
[tasks.train]
returns = "weights"
"""

CODE = """raise SystemExit("the check has run the code")

def initial_model(seed):
    return {}

def train(model, task):
    pass
"""


def job(directory: Path, code: str = CODE, files: dict[str, str] | None = None, **references: str) -> Job:
    directory.mkdir(exist_ok=True)
    values = {
        "model": "code.py:initial_model",
        "workflow": "fed_avg",
        "rule": "mean",
        "executor": "code.py",
    } | references
    (directory / "job.toml").write_text(CONTRACT.format(**values))
    for name, text in {"code.py": code, **(files or {})}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return Job.load(directory)


@pytest.mark.parametrize(
    ("code", "files", "words"),
    [
        (
            "def train(:\n    pass\n",
            {},
            r"code\.py, line 1: expected Python 3\.\d+, got a syntax error: invalid syntax; corr",
        ),
        (CODE, {"other.py": "x = 1\n\n\nreturn x\n"}, r"other\.py, line 4: .*'return' outside function"),
        (CODE, {"pack/deep.py": "if x\n    y\n"}, r"pack/deep\.py, line 1: .* expected ':'"),
        ("x = 1\n\0", {}, r"code\.py"),
        ("# coding: no-such-codec\n", {}, r"code\.py"),
        ("x = " + "(" * 500 + "\n", {}, r"code\.py, line 1"),
    ],
)
def test_a_file_that_does_not_compile_is_named_with_its_line(
    tmp_path: Path, code: str, files: dict[str, str], words: str
) -> None:
    with pytest.raises(JobError, match=words):
        check_code(job(tmp_path / "job", code, files))


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (
            {"model": "code.py:inital_model"},
            (
                r"job\.toml: server\.model: expected 'inital_model' at the top level of code\.py, "
                r"got no such function; did you mean 'initial_model' in line 3\?"
            ),
        ),
        (
            {"workflow": "code.py:run"},
            r"server\.workflow: expected 'run' at the top level of code\.py, got no such function",
        ),
        ({"workflow": "pack.flow:runs"}, r"server\.workflow: expected 'runs' at .* pack/flow\.py.*'run' in line 2"),
        ({"rule": "code.py:median"}, r"server\.rule: expected 'median'"),
        ({"executor": "pack/flow.py"}, r"tasks\.train: expected 'train' at the top level of pack/flow\.py"),
        (
            {"executor": "pack/flow.py:Site"},
            r"tasks\.train: expected a method 'train' of the class Site \(pack/flow\.py, line 5",
        ),
        ({"executor": "pack/flow.py:Stie"}, r"tasks\.train: expected 'Stie' .* did you mean 'Site' in line 5"),
    ],
)
def test_a_function_that_the_contract_names_must_be_there(
    tmp_path: Path, references: dict[str, str], words: str
) -> None:
    flow = "\ndef run(control):\n    pass\n\nclass Site:\n    def validate(self):\n        pass\n"
    with pytest.raises(JobError, match=words):
        check_code(job(tmp_path / "job", files={"pack/flow.py": flow}, **references))


@pytest.mark.parametrize(
    "text",
    [
        "def train(model, task): pass",
        "async def train(model, task): pass",
        "train = lambda model, task: None",
        "from elsewhere import train",
        "from elsewhere import other as train",
        "from elsewhere import *",
        "import elsewhere as train",
        "try:\n    import torch\nexcept ImportError:\n    pass\nelse:\n    def train(): pass",
        "for train in (print,): pass",
        "if (train := print): pass",
        "def make():\n    global train\n    train = print\nmake()",
        "globals()['train'] = print",
        "def __getattr__(name): return print",
        "for name in ('train',):\n    setattr(__import__(__name__), name, print)",
    ],
)
def test_all_ways_to_define_a_function_count(tmp_path: Path, text: str) -> None:
    check_code(job(tmp_path / "job", files={"site.py": f"{text}\n"}, executor="site.py"))


@pytest.mark.parametrize(
    "text",
    [
        "class Site:\n    def train(self, model, task): pass",
        "class Site:\n    def __init__(self, site):\n        self.train = print",
        "class Site:\n    train = print",
        "class Site(dict): pass",
        "class Site(metaclass=type): pass",
        "@str\nclass Site: pass",
        "Site = type('Site', (), {})",
        "def Site(site): return print",
    ],
)
def test_all_ways_to_make_an_executor_count(tmp_path: Path, text: str) -> None:
    check_code(job(tmp_path / "job", files={"site.py": f"{text}\n"}, executor="site.py:Site"))


def test_what_is_not_in_the_directory_is_not_looked_at(tmp_path: Path) -> None:
    files = {"my-notes/old.py": "print 'no module of the job'\n"}
    check_code(job(tmp_path / "job", files=files, workflow="installed.flow:run", executor="installed:Site"))


def test_the_bundled_job_is_right() -> None:
    for directory in BUNDLED_JOBS.iterdir():
        if (directory / "job.toml").exists():
            check_code(Job.load(directory))
