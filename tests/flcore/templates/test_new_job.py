"""`flcore new`: each template is a job that runs at once and learns something."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import flcore
from flcore.templates import TEMPLATES, missing_packages, write_job
from tests.flcore.command import flcore as run_command
from tests.flcore.command import said

LEARNS = {"numpy": 0.8, "sklearn": 0.5, "torch": 0.2, "transformers-lora": 0.75}
"""The largest share of the first round's loss that a template's last round may have."""


def needs_packages(template: str) -> pytest.MarkDecorator:
    absent = [name for name in TEMPLATES[template].packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{absent} not installed (make test-adapters)")


@pytest.mark.filterwarnings("default")  # those of Transformers and PyTorch are theirs
@pytest.mark.parametrize("template", [pytest.param(name, marks=needs_packages(name)) for name in TEMPLATES])
def test_a_template_learns(template: str, tmp_path: Path) -> None:
    write_job(tmp_path / "myjob", template)
    history, model = flcore.run(tmp_path / "myjob", workers=0)
    losses = [record.validate["loss"] for record in history]
    assert len(history) > 3 and losses[-1] < LEARNS[template] * losses[0]
    assert all(not record.failed and len(record.updates) == 3 for record in history)
    if template == "transformers-lora":  # the base model does not travel
        assert all("lora_" in tensor.name for tensor in model.spec.tensors)
    else:
        assert history[-1].validate["accuracy"] > 0.85


@pytest.mark.long
def test_the_commands_of_a_readme(tmp_path: Path) -> None:
    printed = said("new", "jobs/first.one", cwd=tmp_path)
    assert printed.splitlines() == [
        "jobs/first.one/job.toml",
        "jobs/first.one/train.py",
        "jobs/first.one/README.md",
        "next: flcore run jobs/first.one",
    ]
    assert "The job is sound." in said("job", "check", "jobs/first.one", cwd=tmp_path)
    assert "all clients, federated" in run_command("run", "jobs/first.one", "--rounds", "2", cwd=tmp_path)
    assert (tmp_path / "runs/first.one/model.safetensors").is_file()


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_name_is_filled_in_and_one_place_is_for_ones_own_code(template: str, tmp_path: Path) -> None:
    write_job(tmp_path / "my-job_2", template)
    texts = {path.name: path.read_text() for path in (tmp_path / "my-job_2").iterdir()}
    assert set(texts) == {"job.toml", "train.py", "README.md"}
    assert not any("JOBNAME" in text for text in texts.values())
    assert tomllib.loads(texts["job.toml"])["name"] == "my-job_2"
    assert texts["train.py"].count("# YOUR OWN CODE GOES HERE") == 1
    assert len(texts["README.md"].splitlines()) == 10 and "flcore run my-job_2" in texts["README.md"]
    assert list(tmp_path.iterdir()) == [tmp_path / "my-job_2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["there"], "flcore: there: expected a path where there is nothing, got one that exists; choose another one"),
        (["link"], "flcore: link: expected a path where there is nothing, got one that exists"),
        (["a b"], "flcore: expected a job's name: a letter or digit, .* got 'a b'; choose another one"),
        ([".."], "flcore: expected a job's name: .* got '..'"),
        (["x", "--template", "numpi"], "flcore: expected a template .numpy, .* got 'numpi'; did you mean 'numpy'\\?"),
        (["x", "--template", "lora"], "got 'lora'"),
        (["there/file/x"], "flcore: .*there/file: File exists"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    assert re.search(message, said("new", *arguments, cwd=tmp_path, code=1))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "there"]


def test_packages_that_a_template_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_packages("numpy") == []
    monkeypatch.setattr("flcore.templates.new_job.find_spec", lambda module: None if module == "sklearn" else module)
    assert missing_packages("sklearn") == ["scikit-learn"]
    assert "needs: pip install scikit-learn" in said("new", "x", "--template", "sklearn", cwd=tmp_path)


@pytest.mark.parametrize("path", ["file/myjob", "loop/myjob", f"{'b' * 300}/myjob"])
def test_a_place_that_takes_no_files_is_named_with_what_to_do(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    line = said("new", path, cwd=tmp_path, code=1)
    assert line.startswith(f"flcore: {path}: cannot be written: {tmp_path}/") and line.count("\n") == 1
    assert line.endswith("; give a path in a directory of your own\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "loop"]
