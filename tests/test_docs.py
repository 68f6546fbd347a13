"""The pages of docs/ are true: code is run as printed, or checked as `CHECKED` says; references are up to date."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import flcore
from docs import generate
from flcore.cli.main import command_line
from flcore.client.executor import Executor
from flcore.job.contract import WireContract
from flcore.job.site import read_site, server_site
from flcore.simulation.baselines import compute_baselines
from flcore.templates import TEMPLATES
from tests.flcore.processes import read_until, started
from tests.test_readme import blocks, commands, shell

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}

RUN, HERE = "its Python is run, and prints what its comments say", "tests of this file"
CHECKED = {
    "aggregation.md": RUN,
    "audit.md": "tests/flcore/cli/test_audit.py",
    "benchmarks.md": "commands are parsed",
    "certificates.md": "tests/flcore/test_certs_command.py",
    "checkpoints.md": "tests/flcore/test_aggregate_command.py",
    "cli.md": HERE,
    "cuda.md": "tests/test_cuda_doc.py",
    "doctor.md": "tests/flcore/doctor/test_doctor_command.py",
    "durability.md": "tests/flcore/test_outages.py",
    "exact-sums.md": RUN,
    "flower.md": "tests/flcore/adapters/test_flower_run.py",
    "installation.md": HERE,
    "job.md": HERE,
    "jobs.md": "tests/flcore/lead/test_jobs_doc.py",
    "logs.md": "tests/flcore/cli/test_log_options.py",
    "memory.md": HERE,
    "metrics.md": "tests/flcore/metrics/test_metrics_page.py",
    "new-job.md": HERE,
    "non-iid.md": "tests/flcore/heterogeneity/test_non_iid_doc.py",
    "notebooks.md": "tests/flcore/simulation/test_notebook.py",
    "nvflare.md": "tests/flcore/adapters/test_nvflare_run.py",
    "other-frameworks.md": "tests/flcore/adapters/test_other_frameworks.py",
    "packs.md": "tests/flcore/cli/test_pack_command.py",
    "quickstart.md": HERE,
    "real-machines.md": "tests/flcore/test_tls_processes.py",
    "reports.md": "tests/flcore/cli/test_report_commands.py",
    "robust.md": "tests/bench/test_robust.py",
    "rules.md": RUN,
    "sites.md": "tests/flcore/agent/test_sites_page.py",
    "standing-server.md": "tests/flcore/federation/test_server_command.py",
    "status.md": "tests/flcore/status/test_status_page.py",
    "tables.md": "tests/test_tables_doc.py",
    "tracking.md": "tests/flcore/tracking/test_tracking_page.py",
    "web.md": "tests/flcore/web/test_web_commands.py",
    "workflows.md": "tests/flcore/workflows/test_workflows_doc.py",
    "your-job.md": HERE,
}
"""How the code of each page is tested. Besides, every `flcore` command of every page is parsed."""


def block(page: str, language: str, text: str = "") -> str:
    (found,) = [each for each in blocks(language, PAGES[page]) if text in each]
    return found


def test_every_page_with_code_says_how_it_is_tested() -> None:
    assert {name for name, text in PAGES.items() if re.search(r"^```\w", text, re.MULTILINE)} == set(CHECKED)
    for page, how in CHECKED.items():
        if how.startswith("tests/"):
            assert page in (ROOT / how).read_text(), how


def flcore_commands() -> Iterator[tuple[str, list[str]]]:
    for page, text in {**PAGES, "README.md": (ROOT / "README.md").read_text()}.items():
        for script in blocks("sh", text):
            for words in commands(script):
                if words[0] == "flcore":
                    end = next((at for at, word in enumerate(words) if word in ("2>", ">", "&", "|")), len(words))
                    yield page, words[1:end]


def test_every_command_has_the_options_that_pages_give_it() -> None:
    parsed = 0
    for page, words in flcore_commands():
        command: Any = typer.main.get_command(command_line())
        while hasattr(command, "commands"):
            assert words[0] in command.commands, (page, words)
            command, words = command.commands[words[0]], words[1:]
        command.make_context(command.name, list(words))  # raises for an option that does not exist
        parsed += 1
    assert parsed > 15


def test_the_files_that_the_makefile_names_exist() -> None:
    named = re.findall(r"\btests/[\w/]+\.py\b", (ROOT / "Makefile").read_text())
    assert len(named) > 2
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_verb_of_a_page_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, text in PAGES.items():
        verbs = re.findall(r"`make ([a-z-]+)", text)
        verbs += [words[1] for script in blocks("sh", text) for words in commands(script) if words[0] == "make"]
        for verb in verbs:
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE), (page, verb)


@pytest.mark.parametrize("page", [page for page, how in CHECKED.items() if how == RUN])
def test_a_page_prints_what_it_says(page: str, tmp_path: Path) -> None:
    for snippet in blocks("python", PAGES[page]):
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", snippet)


def test_the_rule_of_the_contributor_s_page_is_short_and_prints_what_it_says(tmp_path: Path) -> None:
    (snippet,) = blocks("python", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(snippet.splitlines()) < 40
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", snippet), done.stderr


@pytest.mark.long
def test_the_quickstart_runs_on_one_machine(tmp_path: Path) -> None:
    script = block("quickstart.md", "sh", "flcore run digits ")
    assert len(commands(script)) == 2
    assert shell(script, tmp_path).count("all clients, federated") == 2
    table = re.findall(r"^\| `([\w.]+)`(?:, `([\w.]+)`)? \|", PAGES["quickstart.md"], re.MULTILINE)
    promised = {name for names in table for name in names if name}
    assert promised <= {path.name for path in (tmp_path / "runs/digits").iterdir()}


@pytest.mark.long
def test_the_quickstart_in_three_terminals(tmp_path: Path) -> None:
    server, *clients = commands(block("quickstart.md", "sh", "flcore server"))
    assert all("localhost:8470" in client for client in clients)  # the default port; here, any that is free
    with started("-m", *server, "--port", "0", cwd=tmp_path) as serving:
        found = re.search(r"--server (localhost:\d+)", read_until(serving, "--insecure"))
        assert found is not None
        first, second = ([word.replace("localhost:8470", found[1]) for word in client] for client in clients)
        with started("-m", *first) as a, started("-m", *second) as b:
            assert "hospital-a joined" in read_until(serving, "round 60/60: 2 of 2 clients, loss")
            assert a.wait(60) == b.wait(60) == serving.wait(60) == 0
    written = {path.name for path in (tmp_path / "runs/machines").iterdir()}
    assert written - {"run.json", "audit.jsonl", "state.sqlite"} == {
        "model.safetensors",
        "best.safetensors",
        "history.jsonl",
        "history.png",
    }


@pytest.mark.long
def test_the_quickstart_in_python(tmp_path: Path) -> None:
    script = block("quickstart.md", "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) > 0.9


def write_job(folder: Path, python: str) -> None:
    (folder / "myjob").mkdir()
    (folder / "myjob/job.toml").write_text(block("your-job.md", "toml", "myjob"))
    (folder / "myjob/train.py").write_text(python)


@pytest.mark.long
def test_a_new_job_as_printed(tmp_path: Path) -> None:
    printed = shell(block("new-job.md", "sh"), tmp_path)
    assert "next: flcore run myjob" in printed and "all clients, federated" in printed
    rows = re.findall(r"^\| `([\w-]+)`(?: \(default\))? \| .* \| (.*?) ?\|$", PAGES["new-job.md"], re.MULTILINE)
    assert [name for name, _ in rows] == list(TEMPLATES)
    for name, packages in rows:
        assert len([each for each in packages.split(", ") if each]) == len(TEMPLATES[name].packages)


@pytest.mark.long
def test_the_job_as_printed(tmp_path: Path) -> None:
    toml, python = block("your-job.md", "toml", "myjob"), block("your-job.md", "python", "np.loadtxt")
    assert len((toml + python).splitlines()) < 40
    write_job(tmp_path, python)
    printed = shell(block("your-job.md", "sh", "flcore run myjob"), tmp_path)
    assert "The job is sound." in printed
    federated = re.search(r"all clients, federated\D+([\d.]+)", printed)
    assert federated is not None
    assert float(federated[1]) < 0.01
    assert (tmp_path / "runs/myjob/model.safetensors").exists()


def loaded_job(folder: Path, python: str, toml: str) -> flcore.Job:
    """Write the job that fits a line, with one more file of code and changed keys, and load it."""
    write_job(folder, block("your-job.md", "python", "np.loadtxt"))
    (folder / "myjob/more.py").write_text(python)
    (folder / "myjob/job.toml").write_text(toml)
    (folder / "myjob/data").mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("north", 50), ("south", 500)):
        x = rng.random(count)
        np.savetxt(folder / f"myjob/data/{name}.csv", np.stack([x, 2 * x + 1], axis=1), delimiter=",")
    return flcore.Job.load(folder / "myjob")


def test_the_workflow_with_momentum(tmp_path: Path) -> None:
    toml = block("your-job.md", "toml", "myjob")
    assert 'workflow = "workflow.py:fed_avg_m"' in PAGES["your-job.md"]
    toml = toml.replace("[server]", '[server]\nworkflow = "more.py:fed_avg_m"').replace("rounds = 150", "rounds = 80")
    job = loaded_job(tmp_path, block("your-job.md", "python", "def fed_avg_m"), toml)
    history, model = flcore.run(job, workers=0)
    assert len(history) == 80 and history[-1].validate["error"] < 0.01
    assert float(model.arrays()["offset"]) == pytest.approx(1, abs=0.05)


def test_the_baselines_of_the_page(tmp_path: Path) -> None:
    toml = 'baselines = "more.py:baselines"\n' + block("your-job.md", "toml", "myjob")
    job = loaded_job(tmp_path, block("job.md", "python", "def baselines"), toml)
    baselines = compute_baselines(job)
    assert baselines is not None and set(baselines.alone) == {"north", "south"}
    assert max(*baselines.alone.values(), baselines.centralised) < 1e-6  # the data is on a line


def test_the_job_of_adapters(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(block("your-job.md", "toml", '"adapters"'))
    (tmp_path / "train.py").write_text(block("your-job.md", "python", "class Client"))
    np.save(tmp_path / "base.npy", np.zeros((4, 8)))
    history, model = flcore.run(tmp_path, workers=0)
    assert set(model.arrays()) == {"lora_A", "lora_B"}
    assert history[-1].validate["loss"] < history[0].validate["loss"] / 100


def test_the_check_of_an_installation(tmp_path: Path) -> None:
    printed = shell(block("installation.md", "sh", "flcore job check"), tmp_path)
    assert "The job is sound." in printed and printed.splitlines()[-1] == "[0.25 0.25]"


def test_the_page_about_installation_lists_every_extra_and_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \| .* \|$", PAGES["installation.md"], re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"\w+", row)] == list(project["optional-dependencies"])
    sentence = re.search(r"The dependencies are (.*?)\. Their", PAGES["installation.md"], re.DOTALL)
    assert sentence is not None
    named = re.findall(r"[\w-]+", sentence[1].lower().replace("grpc", "grpcio").replace(" and ", " "))
    assert sorted(named) == sorted(re.match(r"[\w-]+", each)[0] for each in project["dependencies"])  # type: ignore[index]


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (make test-torch)")
def test_the_torch_snippet_as_printed(tmp_path: Path) -> None:
    write_job(tmp_path, block("your-job.md", "python", "torch.optim"))
    toml = (tmp_path / "myjob/job.toml").read_text()
    (tmp_path / "myjob/job.toml").write_text(toml.replace('[tasks.validate]\nreturns = "metrics"\n', ""))
    printed = shell("flcore run myjob --rounds 2", tmp_path)
    assert "all clients, federated" in printed


def test_an_executor_reads_the_path_of_its_site(tmp_path: Path) -> None:
    folder = tmp_path / "hospital"
    folder.mkdir()
    (folder / "job.toml").write_text(block("your-job.md", "toml", '"hospital"'))
    (folder / "train.py").write_text(block("your-job.md", "python", "class Hospital"))
    site = tomllib.loads(block("your-job.md", "toml", "/data/"))
    assert site == {"path": "/data/patients.npy"}
    np.save(tmp_path / "patients.npy", np.arange(6.0).reshape(2, 3))
    job = flcore.Job.load(folder)
    executor = Executor(job, flcore.Site("north", ("north",), 0, {"path": str(tmp_path / "patients.npy")}))
    update = executor.run({"mean": np.zeros(3)}, flcore.Task("train", 1, 1, 0, {}, executor.site))
    assert update.weight == 2 and np.asarray(update.arrays["mean"]).tolist() == [1.5, 2.5, 3.5]


def test_the_site_of_the_page_about_real_machines(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(block("real-machines.md", "toml"))
    assert server_site(read_site(None, tmp_path)).budget == "2GiB"
    rows = re.findall(r"^\| `server\.(\w+)` \|", PAGES["real-machines.md"], re.MULTILINE)
    assert rows == list(type(server_site({})).model_fields)


def test_the_memory_formula_as_printed() -> None:
    script = block("memory.md", "python")
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert 1.510e9 < int(done.stdout) < 1.511e9


def test_the_tables_of_the_memory_page_are_sound(tmp_path: Path) -> None:
    site, wire = blocks("toml", PAGES["memory.md"])
    (tmp_path / "site.toml").write_text(site)
    assert server_site(read_site(None, tmp_path)).budget == "1GiB"
    assert WireContract.model_validate(tomllib.loads(wire)["wire"]).upload == "int8[256]"


def test_the_workflow_in_the_docs_is_the_bundled_one() -> None:
    body = block("job.md", "python", "def fed_avg").partition("\n")[2]
    assert body.strip() in (ROOT / "flcore/workflows/fed_avg.py").read_text()


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_reference_is_what_the_sources_say(page: str) -> None:
    written = generate.written(PAGES[page], generate.PAGES[page]())
    assert PAGES[page] == written, f"run `python -m docs.generate`, which writes docs/{page}"


def test_every_key_of_the_contract_is_documented_and_no_other() -> None:
    keys = re.findall(r"^\| `([^`]+)` \| \S.* \|", generate.job_keys(), re.MULTILINE)
    fields = [
        f"{table}.{name}" if table else name
        for table, model in generate.TABLES.items()
        for name in model.model_fields
        if table or name not in ("server", "client", "tasks", "wire", "bounds")
    ]
    assert keys == fields
    assert all(field.description for model in generate.TABLES.values() for field in model.model_fields.values())


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^\.\. [\w:]+:: flcore\.(\w+)$", PAGES["api.md"], re.MULTILINE)
    assert sorted(named) == sorted(set(flcore.__all__) - {"__version__"})


def messages() -> set[str]:
    """Every string of the sources, with a mark for what is put into it."""
    found: set[str] = set()
    for package in ("flcore", "kernels/flcore_kernels", "transport/flcore_transport"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_the_errors_of_the_page_are_those_of_the_sources() -> None:
    known = messages()
    texts = re.findall(r"^### `(.+)`$", PAGES["troubleshooting.md"], re.MULTILINE)
    assert len(texts) >= 15
    for text in texts:
        pattern = re.compile(".*".join(re.escape(part) for part in text.split("…")), re.DOTALL)
        assert any(pattern.search(message) for message in known), text


def test_the_glossary_is_short() -> None:
    terms = re.findall(r"^\| ([a-z ]+) \| [A-Z]", PAGES["glossary.md"], re.MULTILINE)
    assert terms == sorted(terms) and 10 < len(terms) <= 25
