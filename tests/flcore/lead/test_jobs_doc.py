"""docs/jobs.md: its commands in their order and its Python, at a server in memory."""

import runpy
import threading
from pathlib import Path
from typing import Any

import pytest

import flcore
from flcore.cli import federation_options, login
from flcore.lead.connection import FederationConnection
from flcore.lead.server_calls import ServerCalls
from tests.flcore.command import said
from tests.flcore.lead.fake_server import FakeServer
from tests.flcore.lead.kits import federation_authority, unpacked_kit
from tests.flcore.lead.test_connection import write_job
from tests.flcore.lead.test_submitted_job import HISTORY, model_files
from tests.test_readme import blocks, commands

PAGE = (Path(flcore.__file__).parents[1] / "docs/jobs.md").read_text()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    made = FakeServer(part_bytes=10_000)

    def connect(*_: Any, notify: Any = lambda _: None, **__: Any) -> FederationConnection:
        return FederationConnection(ServerCalls(made, "alice, lead of hospitals", notify))

    for module in (federation_options, login, flcore):
        monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    unpacked_kit(federation_authority(tmp_path), tmp_path)
    write_job(tmp_path / "myjob")
    return made


def end_the_job(server: FakeServer, directory: Path) -> None:
    """Have the job end a moment after it was submitted, with a history and a model."""
    directory.mkdir()
    files = {**model_files(directory), "run/history.jsonl": HISTORY}

    def end() -> None:
        server.files["myjob-1"] = files
        server.log("myjob-1", b"round 2/2\n")
        server.update("myjob-1", state="done", round=2)

    threading.Timer(1.0, end).start()


def test_the_commands_in_their_order(server: FakeServer, tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    for script in blocks("sh", PAGE):
        for name, *words in commands(script):
            if name == "flcore":
                printed[" ".join(words)] = said(*words, cwd=tmp_path)
            if words[0] == "submit":
                end_the_job(server, tmp_path / "results")
    assert printed["submit myjob --set server.rounds=20"] == "myjob-1\n"
    assert printed["logs myjob-1 --follow"] == "round 2/2\n"
    assert (tmp_path / "myjob-1/report.txt").exists()
    assert printed["clone myjob-1 --set server.rounds=30"] == "myjob-2\n"
    assert list(server.jobs) == ["myjob-1"]


def test_the_python_prints_what_its_comments_say(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = blocks("python", PAGE)
    (tmp_path / "snippet.py").write_text(snippet)
    monkeypatch.chdir(tmp_path)
    end_the_job(server, tmp_path / "results")
    runpy.run_path("snippet.py")
    assert capsys.readouterr().out.splitlines() == [
        line.partition("  # ")[2] for line in snippet.splitlines() if "print(" in line
    ]
