"""The README and the first pages of the docs are true: commands, job and snippets are run as printed."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.flcore.processes import read_until, started

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs/quickstart.md").read_text()
YOUR_JOB = (ROOT / "docs/your-job.md").read_text()
JOB_DOC = (ROOT / "docs/job.md").read_text()
MEMORY_DOC = (ROOT / "docs/memory.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block_with(language: str, text: str, document: str = README) -> str:
    (found,) = [block for block in blocks(language, document) if text in block]
    return found


def shell(script: str, cwd: Path) -> str:
    """Run a shell script with this environment's `flcore` and `python` first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def commands(script: str) -> list[list[str]]:
    return [words for line in script.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_rule_on_the_page_of_rules() -> None:
    for snippet in blocks("python", (ROOT / "docs/rules.md").read_text()):
        done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
        assert done.stdout.strip() in snippet


@pytest.mark.parametrize(
    ("document", "languages"),
    [
        (README, {"sh": 1, "python": 1}),
        (QUICKSTART, {"sh": 2, "python": 1, "text": 1}),
        (YOUR_JOB, {"toml": 1, "python": 2, "sh": 1}),
    ],
    ids=["README", "quickstart", "your-job"],
)
def test_a_page_has_no_snippet_but_those_that_are_run_here(document: str, languages: dict[str, int]) -> None:
    assert Counter(re.findall(r"^```(\w+)$", document, re.MULTILINE)) == languages


def test_the_readme_has_one_picture_one_table_and_less_than_150_lines() -> None:
    assert len(README.splitlines()) < 150
    assert len(re.findall(r"!\[", README)) == len(re.findall(r"^\|---", README, re.MULTILINE)) == 1
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 80


def test_the_two_commands_exist_and_are_what_ci_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for _, verb in commands(block_with("sh", "make demo")):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE)
    assert "$(BIN)/flcore run digits" in makefile
    assert "make check\nmake test" in (ROOT / ".ci/run").read_text()


@pytest.mark.long
def test_runs_on_one_machine(tmp_path: Path) -> None:
    script = block_with("sh", "flcore run digits ", QUICKSTART)
    assert len(commands(script)) == 2
    printed = shell(script, tmp_path)
    assert printed.count("all clients, federated") == 2


@pytest.mark.long
def test_three_terminals(tmp_path: Path) -> None:
    server, first, second = commands(block_with("sh", "flcore server", QUICKSTART))
    with started("-m", *server, cwd=tmp_path) as serving:
        read_until(serving, "flcore client")
        with started("-m", *first) as a, started("-m", *second) as b:
            assert "60/60" in read_until(serving, "round 60/60")
            assert a.wait(20) == b.wait(20) == serving.wait(20) == 0


@pytest.mark.long
def test_the_notebook(tmp_path: Path) -> None:
    script = block_with("python", 'flcore.run("digits")', QUICKSTART)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) > 0.9


def write_job(folder: Path, python: str) -> None:
    (folder / "myjob").mkdir()
    (folder / "myjob/job.toml").write_text(block_with("toml", "myjob", YOUR_JOB))
    (folder / "myjob/train.py").write_text(python)


@pytest.mark.long
def test_the_job_as_printed(tmp_path: Path) -> None:
    toml, python = block_with("toml", "myjob", YOUR_JOB), block_with("python", "np.loadtxt", YOUR_JOB)
    assert len((toml + python).splitlines()) < 40
    write_job(tmp_path, python)
    printed = shell(block_with("sh", "flcore run myjob", YOUR_JOB), tmp_path)
    assert "The job is sound." in printed
    federated = re.search(r"all clients, federated\D+([\d.]+)", printed)
    assert federated is not None
    assert float(federated[1]) < 0.01
    assert (tmp_path / "runs/myjob/model.safetensors").exists()


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (make test-torch)")
def test_the_torch_snippet_as_printed(tmp_path: Path) -> None:
    write_job(tmp_path, block_with("python", "torch.optim", YOUR_JOB))
    toml = (tmp_path / "myjob/job.toml").read_text()
    (tmp_path / "myjob/job.toml").write_text(toml.replace('[tasks.validate]\nreturns = "metrics"\n', ""))
    printed = shell("flcore run myjob --rounds 2", tmp_path)
    assert "all clients, federated" in printed


def test_aggregation_alone() -> None:
    script = block_with("python", "flcore.aggregate")
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[4. 5.]"


def test_the_memory_formula_as_printed() -> None:
    (script,) = blocks("python", MEMORY_DOC)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert 1.409e9 < int(done.stdout) < 1.411e9


def test_the_tables_of_the_memory_page_are_sound(tmp_path: Path) -> None:
    from flcore.job.contract import WireContract
    from flcore.job.site import read_site, server_site

    site, wire = blocks("toml", MEMORY_DOC)
    (tmp_path / "site.toml").write_text(site)
    assert server_site(read_site(None, tmp_path)).budget == "1GiB"
    assert WireContract.model_validate(tomllib.loads(wire)["wire"]).upload == "int8[256]"


def test_the_playbook_in_the_docs_is_the_bundled_one(tmp_path: Path) -> None:
    playbook = blocks("python", JOB_DOC)[-1]
    source = (ROOT / "flcore/server/playbooks.py").read_text()
    body = playbook.partition("\n")[2]
    assert body.strip() in source


def test_every_key_of_the_contract_is_documented_and_no_other() -> None:
    from flcore.job.contract import Bounds, ClientContract, Contract, ServerContract, TaskContract, WireContract

    def fields_of(model: type[BaseModel]) -> list[str]:
        return list(model.model_fields)

    tables: dict[str, type[BaseModel]] = {
        "server": ServerContract,
        "client": ClientContract,
        "tasks.NAME": TaskContract,
        "bounds": Bounds,
        "wire": WireContract,
    }
    keys = {key for key in fields_of(Contract) if key not in ("server", "client", "tasks", "bounds", "wire")}
    keys |= {f"{table}.{key}" for table, model in tables.items() for key in fields_of(model)}
    assert set(re.findall(r"^\| `([^`]+)` \|", JOB_DOC, re.MULTILINE)) == keys


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "bench/RESULTS.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name}: {link}"
