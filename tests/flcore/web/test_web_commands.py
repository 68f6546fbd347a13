"""`--web`: on the server of a job, and of a standing federation; over TLS with a token; refused where it is unsafe."""

import json
import re
import ssl
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from flcore import Arrays, Task, Update
from flcore.cli import web_page as module
from flcore.cli.web_page import web_page
from flcore.errors import CertificateError, JobError
from flcore.server.history_table import read_history
from flcore.status.timeline import PHASES
from flcore.web import FederationSource, RunSource, Token, WebServer
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import Federation, packed, write_job
from tests.flcore.processes import read_until, started, write_slow_job
from tests.flcore.web.small_client import PageClient, until
from tests.flcore.web.synthetic_job import SyntheticJob

TIMEOUT_S = 60.0
PAGE = Path(__file__).parents[3] / "docs/web.md"


def test_the_page_says_of_each_phase_what_its_documentation_says() -> None:
    page = (Path(module.__file__).parents[1] / "web/static/index.html").read_text()
    [words] = re.findall(r'<dl id="phase-words".*?>(.*?)</dl>', page)
    documented = dict(re.findall(r"^\| ([a-z]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert dict(re.findall(r"<dt>(.*?)<dd>(.*?)</div>", words)) == {phase: documented[phase] for phase in PHASES}


def source() -> RunSource:
    job = SyntheticJob()
    return RunSource(job.board, job.contract, None)


def ignore(_: str, __: str) -> None:
    """Ignore the page's address."""


def test_a_page_for_other_machines_needs_tls() -> None:
    with pytest.raises(JobError, match="expected TLS"), web_page(("0.0.0.0", 0), source, ignore):
        pass


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "uvicorn" else object())
    with (
        pytest.raises(JobError, match=r"needs uvicorn; pip install 'flcore\[web\]'"),
        web_page(("127.0.0.1", 0), source, ignore),
    ):
        pass


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with WebServer(source()) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with (
            pytest.raises(JobError, match=f"127.0.0.1:{port}.*--web"),
            web_page(("127.0.0.1", port), source, ignore),
        ):
            pass


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "web-token"
    Token.read_or_create(path)
    made = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(made.strip()) >= 40
    assert Token.read_or_create(path).is_bearer(f"Bearer {made.strip()}")
    assert path.read_text() == made
    path.chmod(0o644)
    with pytest.raises(CertificateError, match="chmod 600"):
        Token.read_or_create(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(CertificateError, match="at least 20"):
        Token.read_or_create(path)
    with pytest.raises(CertificateError, match="--web-token"):
        Token.read_or_create(tmp_path / "nowhere/web-token")


def test_over_tls_the_page_has_the_servers_certificate_and_needs_the_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flcore", "certs", "init", "hospitals", "--host", "localhost"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    certificates, said = tmp_path / "certs/server", list[str]()
    address = ("0.0.0.0", 0)
    told = web_page(address, source, lambda text, _: said.append(text), certificates=certificates, hosts=("localhost",))
    with told:
        [text] = said
        assert f"its token is in {certificates / 'web-token'}" in text
        token = (certificates / "web-token").read_text().strip()
        assert token not in text
        url = re.search(r"https://localhost:\d+/", text)
        assert url is not None
        trusted = ssl.create_default_context(cafile=certificates / "ca.pem")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url[0]}status.json", context=trusted, timeout=TIMEOUT_S)
        request = urllib.request.Request(f"{url[0]}status.json", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, context=trusted, timeout=TIMEOUT_S) as reply:
            assert json.load(reply)["jobs"][0]["job"] == "chest-xray"
        login = urllib.request.Request(f"{url[0]}api/login", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(login, context=trusted, timeout=TIMEOUT_S) as reply:
            assert "; Secure" in reply.headers["Set-Cookie"]


def page_of(line: str) -> PageClient:
    found = re.search(r"the web page is (http://\S+)", line)
    assert found is not None, line
    return PageClient(found[1])


def test_the_server_of_a_job_shows_it_while_it_runs(tmp_path: Path) -> None:
    write_slow_job(tmp_path, rounds=3)
    [printed] = re.findall(r"^flcore server digits --insecure --web 8480$", PAGE.read_text(), re.MULTILINE)
    command = ("-m", *printed.replace("digits", "small --port 0").replace("8480", "0").split())
    with started(*command, cwd=tmp_path) as server:
        page = page_of(read_until(server, "the web page is"))
        address = re.search(r"listening on (\S+);", read_until(server, "listening on"))
        assert address is not None
        with page.states("small") as states:
            assert next(states)["job"]["state"] == "waiting"
            join = ("-m", "flcore", "client", "small", "--server", address[1], "--insecure", "--name")
            with started(*join, "one", cwd=tmp_path), started(*join, "two", cwd=tmp_path):
                last = list(states)[-1]["job"]
        assert (last["state"], last["rounds_over"], last["is_over"]) == ("done", 3, True)
        assert server.wait(TIMEOUT_S) == 0
    history = read_history(tmp_path / "runs/small")
    assert last["bytes_received"] == sum(record.bytes_received for record in history)
    assert {client["name"]: client["answers"] for client in last["clients"] if client["answers"]} == {
        name: sum(name in record.updates for record in history) for name in ("one", "two")
    }


def test_a_standing_federation_shows_its_jobs_and_sites(federation: Federation, tmp_path: Path) -> None:
    gate, at_gate = threading.Event(), threading.Event()

    def until_open(gate: threading.Event) -> Callable[[Arrays, Task], Update]:
        def train(model: Arrays, task: Task) -> Update:
            if task.round == 2:
                at_gate.set()
                assert gate.wait(TIMEOUT_S)
            return adding(1.0)(model, task)

        return train

    with WebServer(FederationSource(federation.server)) as server:
        page = PageClient(server.url)
        with page.states() as states:
            assert next(states)["jobs"] == []
            alice = federation.person("alice")
            for site in ("north", "south"):
                federation.agent(site, until_open(gate))
            job_id = alice.submit(packed(write_job(tmp_path / "small", rounds=3)))
            seen = until(states, lambda state: [job["key"] for job in state["jobs"]] == [job_id])
            assert seen["job"] is None
        try:
            assert at_gate.wait(TIMEOUT_S)
            with page.states(job_id) as states:
                now = until(states, lambda state: state["job"]["round"] == 2)
                assert [(site["name"], site["is_connected"]) for site in now["sites"]] == [
                    ("north", True),
                    ("south", True),
                ]
                assert now["job"]["timeline"]["round"] == 2
                assert page.get(f"/api/jobs/{job_id}/timeline?round=1").json()["clients"]
                gate.set()
                assert until(states, lambda state: state["job"]["state"] == "done")
        finally:
            gate.set()
        rounds = page.get(f"/api/jobs/{job_id}/rounds").json()["rounds"]
        assert [(each["round"], each["updates"]) for each in rounds] == [(1, 2), (2, 2), (3, 2)]
        assert page.get(f"/api/jobs/{job_id}/contract").json()["name"] == "small"
        assert "history.jsonl" in dict(page.get(f"/api/jobs/{job_id}/files").json()["files"])
        history = page.get(f"/api/jobs/{job_id}/files/history.jsonl").body.decode().splitlines()
        assert [json.loads(line)["round"] for line in history] == [1, 2, 3]
        assert page.get("/api/jobs/nothing-1/contract").status == 404
