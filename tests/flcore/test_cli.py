"""The command line: what people type, what they get, and what they are told when it is wrong."""

import json
import resource
import struct
from pathlib import Path

import pytest

from tests.flcore.command import flcore, said
from tests.pictures import ARE_KEPT, DOCS, keep


@pytest.mark.long
def test_the_picture_of_the_readme(tmp_path: Path) -> None:
    """The whole run where the picture is kept, as `make demo` makes it; else two rounds of it."""
    flcore("run", "digits", *([] if ARE_KEPT else ["--rounds", "2"]), cwd=tmp_path)
    picture = tmp_path / "runs/digits/history.png"
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width >= 800 and height >= 400
    keep(picture, "digits.png")
    assert "(docs/digits.png)" in (DOCS.parent / "README.md").read_text()


@pytest.mark.long
def test_a_run_writes_its_files_and_prints_a_table(tmp_path: Path) -> None:
    printed = flcore("run", "digits", "--rounds", "2", "--workers", "2", cwd=tmp_path)
    assert "hospital-f alone" in printed and "all clients, federated" in printed and "all data in one place" in printed
    assert "round 1/2: 6 of 6 clients" in printed and "round 2/2: 6 of 6 clients" in printed
    for name in ("model.safetensors", "history.jsonl", "history.png"):
        assert f"runs/digits/{name}" in printed
        assert (tmp_path / "runs/digits" / name).stat().st_size > 0
    records = [json.loads(line) for line in (tmp_path / "runs/digits/history.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2]
    expected = {"round", "sampled", "updates", "failed", "train", "validate", "bytes_sent", "bytes_received", "seconds"}
    assert expected < set(records[0])
    assert set(records[0]["updates"]["hospital-a"]) == {"weight", "metrics", "bytes", "seconds"}
    assert (tmp_path / "runs/digits/history.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_as_json(tmp_path: Path) -> None:
    printed = flcore("run", "digits", "--rounds", "1", "--workers", "0", "--out", "here", "--json", cwd=tmp_path)
    result = json.loads(printed)
    assert result["job"] == "digits" and len(result["history"]) == 1
    assert set(result["baselines"]["alone"]) == {f"hospital-{letter}" for letter in "abcdef"}
    assert (tmp_path / result["model"]).exists()


def test_job_check_says_what_a_job_will_do(tmp_path: Path) -> None:
    printed = said("job", "check", "digits", cwd=tmp_path)
    assert "fed_avg, 60 rounds, rule mean" in printed
    assert "train returns weights" in printed
    assert "4 tensors, 19,210 parameters" in printed
    assert "The job is sound." in printed


def test_the_rules_are_listed_and_explained(tmp_path: Path) -> None:
    title, first, *_ = said("rules", cwd=tmp_path).splitlines()
    assert title == "Rules:" and first.startswith("  mean ")
    for name, words in (("mean", "FedAvg"), ("krum", "Blanchard"), ("nnm", "Allouah"), ("fed_yogi", "Reddi")):
        assert words in said("rules", name, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere"], 1, "flcore: there is no job at nowhere"),
        (["run", "digts"], 1, "(digits); did you mean 'digits'?"),
        (["rules", "maen"], 1, "did you mean 'mean'?"),
        (["rules", "krim"], 1, "flcore: rule 'krim' does not exist"),
        (["server", "digits"], 1, "flcore: expected the server's certificates in certs/server"),
        (["client", "digits", "--name", "a"], 1, "flcore: expected a kit, as TLS needs a certificate"),
        (["server", "digits", "--insecure", "--budget", "10MiB"], 1, "too small for any job; 64MiB would do"),
        (["server", "digits", "--insecure", "--budget", ""], 1, "a number and a unit, such as 512MiB"),
        (["server", "digits", "--insecure", "--budget", "lots"], 1, "a number and a unit, such as 512MiB"),
        (["server", "digits", "--insecure", "--budget", "999TiB"], 1, "of memory, and there are"),
        (["server", "digits", "--insecure", "--connections", "15"], 2, "--connections"),
        (["server", "digits", "--plan", "at-close"], 2, "got 'at-close'; it is called batch now"),
        (["server", "digits", "--plan", "later"], 2, "expected batch or streaming, got 'later'"),
        (["server", "digits", "--insecure", "--host", "0.0.0.0"], 1, "0.0.0.0 is not this machine"),
        (
            ["client", "digits", "--insecure", "--server", "10.0.0.1:80", "--name", "hospital-a"],
            1,
            "10.0.0.1 is not this machine",
        ),
        (["client", "digits", "--insecure", "--server", "x", "--name", "hospital-a"], 2, "expected HOST:PORT, got 'x'"),
        (["client", "digits", "--insecure", "--server", "localhost:1", "--name", "me"], 1, "'me' is not among"),
        (["server", "digits", "--insecure", "--host", "[::1]"], 2, "without brackets"),
        (["run", "digits", "--rounds", "0"], 2, "--rounds"),
        (
            ["run", "digits", "--out", "x.safetensors"],
            1,
            "expected a directory for several files, got 'x.safetensors'",
        ),
        (["server", "digits", "--insecure", "--out", "x.safetensors"], 1, "expected a directory for several files"),
        (["run", "digits", "--clients", "400", "--workers", "0"], 1, "too few for 400 clients"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    assert message in said(*arguments, cwd=tmp_path, code=code)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "no such command 'nope'; see `flcore --help`"),
        (["servr"], "no such command 'servr'; did you mean 'server'? see `flcore --help`"),
        (["run"], "missing argument job; see `flcore run --help`"),
        (["run", "digits", "--ruonds", "3"], "no such option: --ruonds; did you mean '--rounds'? see `flcore run"),
        (["run", "digits", "--round", "3"], "no such option: --round; did you mean '--rounds'? see `flcore run"),
        (
            ["plot", "run", "--what", "metric"],
            (
                "invalid value for --what: 'metric' is not one of 'all', 'metrics', 'sites', 'phases', 'bytes'; "
                "did you mean 'metrics'? see `flcore plot"
            ),
        ),
        (["run", "digits", "--web", "abc"], "invalid value for --web: expected [HOST:]PORT, got 'abc'; "),
        (["run", "--nope"], "no such option: --nope; see `flcore run --help`"),
        (
            ["server", "digits", "--plan", "later"],
            "invalid value for --plan: expected batch or streaming, got 'later'; ",
        ),
        (
            ["client", "digits", "--insecure", "--server", "x", "--name", "a"],
            "invalid value for --server: expected HOST",
        ),
        (
            ["certs", "issue", "a", "a"],
            "invalid value for NAME: expected each name once, got a again; see `flcore certs",
        ),
        (["run", "digits", "--rounds", "0"], "invalid value for --rounds: "),
        (["bench", "x"], "invalid value for what: 'x' is not one of 'kernels', "),
        (["aggregate", "a", "--out"], "option '--out' requires an argument; see `flcore"),
    ],
)
def test_a_usage_error_is_one_line_in_one_form(tmp_path: Path, arguments: list[str], line: str) -> None:
    printed = said(*arguments, cwd=tmp_path, code=2)
    assert printed.startswith(f"flcore: {line}") and printed.endswith(" --help`\n") and printed.count("\n") == 1


def test_a_group_without_a_command_prints_its_help(tmp_path: Path) -> None:
    assert said("certs", cwd=tmp_path, code=2).split()[:3] == ["Usage:", "flcore", "certs"]


def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    assert flcore("run", "nowhere", cwd=tmp_path, code=1).startswith("flcore: there is no job at nowhere")


def test_a_contract_with_mistakes_is_told_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        'name = "x"\nclients = 2\nrounds = 3\n[server]\nmodel = "a.py:b"\nrounds = "3"\n'
    )
    printed = said("job", "check", ".", cwd=tmp_path, code=1)
    for line in ("job.toml: rounds: there is no such key", "server.rounds: input should be a valid integer, not '3'"):
        assert line in printed
    assert "job.toml: expected the keys client, tasks, which are missing" in printed


def test_a_job_as_windows_editors_save_it(tmp_path: Path) -> None:
    toml = (
        'name = "t"\nclients = ["a"]\nserver = { model = "t.py:init", rounds = 1 }\n'
        'client = { executor = "t.py" }\ntasks.train.returns = "weights"\n'
    )
    code = (
        "import numpy as np, flcore\ndef init(seed): return {'w': np.zeros(3, np.float32)}\n"
        "def train(model, task): return flcore.Update({'w': model['w'] + 1}, weight=1)\n"
    )
    (tmp_path / "t.py").write_text(code, encoding="utf-8-sig", newline="\r\n")
    (tmp_path / "job.toml").write_text(toml)
    plain = said("job", "check", ".", cwd=tmp_path)
    (tmp_path / "job.toml").write_text(toml, encoding="utf-8-sig", newline="\r\n")
    assert said("job", "check", ".", cwd=tmp_path) == plain
    assert "runs/t/model.safetensors" in said("run", ".", "--workers", "0", cwd=tmp_path)
    (tmp_path / "job.toml").write_text(toml, encoding="utf-16")
    assert "job.toml: expected TOML: expected UTF-8, got UTF-16" in said("run", ".", cwd=tmp_path, code=1)


JOB = (
    'name = "t"\nclients = ["a"]\nserver = { model = "t.py:init", rounds = 2 }\nclient = { executor = "t.py" }\n'
    'tasks.train.returns = "weights"\ntasks.validate.returns = "metrics"\n'
)
CODE = (
    "import numpy as np, flcore\ndef init(seed): return {'w': np.zeros(400_000, np.float32)}\n"
    "def train(model, task): return flcore.Update({'w': model['w'] + 1}, weight=1)\n"
    "def validate(model, task): return flcore.Update(weight=1, metrics={'pr\\u00e9cision': 0.5})\n"
)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "t.py").write_text(CODE)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def test_a_server_has_a_connection_for_each_client(job: Path) -> None:
    (job / "job.toml").write_text(JOB.replace('["a"]', "17"))
    (job / "site.toml").write_text("[server]\nconnections = 16\n")
    printed = said("server", ".", "--insecure", "--port", "0", cwd=job, code=1)
    assert "17 clients need as many connections" in printed and "start it with --connections 34" in printed


def test_a_run_without_a_terminal_prints_a_line_a_round(job: Path) -> None:
    printed = said("run", ".", "--workers", "0", cwd=job)
    assert "round 1/2: 1 of 1 client, précision 0.5" in printed and "round 2/2: 1 of 1 client" in printed


def test_a_run_whose_clients_fail_says_where_and_ends_with_a_code(job: Path) -> None:
    (job / "t.py").write_text(CODE.replace("model['w']", "model['weigth']"))
    printed = flcore("run", ".", "--workers", "1", cwd=job, code=1)
    assert 't.py", line 3, in train' in printed
    assert printed.splitlines()[-1].startswith("flcore: task 'train': 0 of 1 answers are in")


def test_a_retry_is_printed_while_the_run_goes_on(job: Path) -> None:
    (job / "job.toml").write_text(JOB.replace("rounds = 2", "rounds = 2, quorum_retries = 1"))
    (job / "t.py").write_text(CODE.replace("model['w']", "model['weigth']"))
    printed = flcore("run", ".", "--workers", "0", cwd=job, code=1)
    assert "round 1: train has 0 of 1 answer that it needs; asking a again in 1 s, retry 1 of 1" in printed


def test_a_plot_that_is_not_drawn_says_why(job: Path) -> None:
    (job / "job.toml").write_text(JOB.replace('tasks.validate.returns = "metrics"\n', ""))
    assert "plot     not drawn: the job has no task that validates" in said("run", ".", "--workers", "0", cwd=job)


def test_a_terminal_that_shows_ascii_only(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    printed = flcore("run", ".", "--workers", "0", "--out", "köln", cwd=job)
    assert r"pr\xe9cision" in printed and r"k\xf6ln/model.safetensors" in printed


@pytest.mark.parametrize("command", [["run", ".", "--workers", "0"], ["server", ".", "--insecure", "--port", "0"]])
def test_an_error_of_the_system_is_one_line(job: Path, command: list[str]) -> None:
    printed = said(*command, "--out", "/proc/results", cwd=job, code=1)
    assert printed.startswith("flcore: ") and "/proc/results" in printed and printed.count("\n") == 1


def test_a_full_disk_is_one_line(job: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # no file may grow beyond it
    try:
        printed = said("run", ".", "--workers", "0", "--out", "here", cwd=job, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    place = "here/.models/1/0.safetensors"
    advice = "raise the limit of a file's size, then start again: a run that is not over goes on"
    assert printed == f"flcore: {place}: File too large; {advice}\n"
    assert [path.name for path in (job / "here").iterdir()] == ["audit.jsonl"]


def test_modules_in_the_working_directory_are_nobodys(job: Path) -> None:
    (job / "job").mkdir()
    (job / "job/job.toml").write_text(JOB)
    (job / "job/t.py").write_text(CODE.replace("flcore\n", "flcore, colorsys\n", 1))
    (job / "colorsys.py").write_text("raise SystemExit('this is mine')")
    flcore("run", "job", "--workers", "1", cwd=job)


@pytest.mark.parametrize(
    "command", [[], ["run"], ["server"], ["client"], ["show"], ["job", "check"], ["rules"], ["bench"]]
)
def test_every_command_has_help(tmp_path: Path, command: list[str]) -> None:
    assert "Usage:" in said(*command, "--help", cwd=tmp_path)
