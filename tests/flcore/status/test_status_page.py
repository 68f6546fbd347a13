"""The commands and the Python of docs/status.md."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from flcore.status import PHASES, State, parse_status
from tests.flcore.command import flcore, said
from tests.flcore.federation.conftest import federation, federation_in  # noqa: F401 - fixtures
from tests.flcore.federation.small_federation import Federation, packed, write_job
from tests.test_readme import blocks, commands

PAGE = (Path(__file__).parents[3] / "docs" / "status.md").read_text()
RUN_COMMANDS, FEDERATION_COMMANDS = (list(commands(script)) for script in blocks("sh", PAGE))


@pytest.mark.long
def test_the_commands_for_a_run(tmp_path: Path) -> None:
    run, status, as_json = ([*words[1:]] for words in RUN_COMMANDS)
    flcore(*run, "--workers", "0", cwd=tmp_path)
    assert "rounds   3 of 3 are over" in said(*status, cwd=tmp_path).splitlines()
    assert parse_status("job", said(*as_json, cwd=tmp_path).encode()).state == "done"


def test_the_commands_for_a_federation(federation: Federation, tmp_path: Path) -> None:  # noqa: F811
    lead = federation.lead()
    for site in ("north", "south"):
        federation.agent(site)
    job_id = lead.submit(packed(write_job(tmp_path / "myjob", "myjob")))
    lead.wait(job_id)
    there = ("--insecure", "--server", federation.server.address)
    of_all, of_one, watched = ([*words[1:]] for words in FEDERATION_COMMANDS)
    lines = said(*of_all, *there, cwd=tmp_path).splitlines()
    assert any(re.match(r"myjob-1 +done +2/2", line) for line in lines)
    assert [line.split()[:2] for line in lines[-2:]] == [["north", "connected"], ["south", "connected"]]
    assert "state    done" in said(*of_one, *there, cwd=tmp_path)
    assert "rounds   2 of 2 are over" in said(*watched, *there, cwd=tmp_path)
    as_json = json.loads(said(*of_all, "--json", *there, cwd=tmp_path))
    assert parse_status("federation", json.dumps(as_json).encode()).jobs[0].id == "myjob-1"


@pytest.mark.long
def test_the_python_prints_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks("python", PAGE)
    exec(compile(snippet, "status.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", snippet)


def test_the_page_explains_each_state() -> None:
    for state in (*PHASES, *get_args(State)):
        assert f"- `{state}`" in PAGE, state
