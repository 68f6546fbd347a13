"""Situations that a standing federation comes into, each played once, and what each place then shows of it.

A job has two sites that do their work, `north` and `south`, and a third one, to which something happens in round 2.
Places are those in which somebody looks. Each is text: what a command prints, or JSON as the page receives it.
"""

import html
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from flcore import Arrays, Task, Update
from flcore.event_log.log import Log, log_events
from flcore.server.events import Observer
from flcore.server.run_summary import lock_owner
from flcore.status.job_status import JobStatus
from flcore.status.observed_run import ObservedRun
from flcore.web import FederationSource, WebServer
from tests.flcore.command import said
from tests.flcore.conftest import Function, adding
from tests.flcore.federation.small_federation import Agent, Federation, packed, write_job
from tests.flcore.web.small_client import PageClient

TIMEOUT_S = 60.0
ADD_ONE = adding(1.0)


@dataclass
class Played:
    """What is shown of a situation.

    Attributes:
        job: The job's id.
        places: What each place shows to the job's lead and to the server's operator.
        bystander: The site that did nothing wrong.
    """

    job: str
    places: dict[str, str]
    bystander: Agent

    @property
    def told(self) -> str:
        """What the site that did nothing wrong was told, when it has ended."""
        until_s = time.monotonic() + TIMEOUT_S
        while not self.bystander.ended:
            assert time.monotonic() < until_s, "the site goes on"
            time.sleep(0.02)
        return "".join(self.bystander.ended)


class Stage:
    """A standing federation with a web page. Jobs run one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._json_lines = list[str]()
        self.federation = Federation(directory / "federation", observe_runs=(self._log_as_json,))
        self.lead, self.server = self.federation.person("alice"), self.federation.server
        self._web = WebServer(FederationSource(self.server))
        self._web.__enter__()
        self.page = PageClient(self._web.url)

    def close(self) -> None:
        self._web.close()
        self.federation.close()

    @contextmanager
    def job(self, name: str, third: str, act: Function, **changes: Any) -> Iterator["StagedJob"]:
        """Run a job while the block lasts. Its third site does `act` in round 2."""
        staged = StagedJob(self, name, third, act, changes)
        try:
            yield staged
        finally:
            staged.close()

    @contextmanager
    def _log_as_json(self, run: ObservedRun) -> Iterator[Observer]:
        """Write the lines of `--log-format json`."""
        with Log("json", lambda data: self._json_lines.append(data.decode()), job=run.id) as log:
            yield log_events(log, run.contract)

    def json_log(self, job: str) -> str:
        return "".join(line for line in self._json_lines if json.loads(line)["job"] == job)


class StagedJob:
    """A job of three sites. Round 1 ends when all have joined; round 3 waits for `go_on`."""

    def __init__(self, stage: Stage, name: str, third: str, act: Function, changes: dict[str, Any]) -> None:
        self.stage, self._act = stage, act
        self.all_there, self.go_on, self.is_in_round_3 = Event(), Event(), Event()
        clients = ["north", "south", third]
        job = write_job(stage.directory / name, name, clients=json.dumps(clients), rounds=3)
        self.id = stage.lead.submit(packed(job), **changes)
        self.agents = [stage.federation.agent(client, self._train(client == third)) for client in clients]
        stage.lead.wait_for(self.id, lambda found: [*found.sites.values()] == ["joined"] * 3, TIMEOUT_S)
        self.all_there.set()

    @property
    def run(self) -> Path:
        """The directory of the job's run."""
        return self.stage.federation.directory / "jobs" / self.id / "run"

    def _train(self, acts: bool) -> Function:
        def train(model: Arrays, task: Task) -> Update:
            if task.round == 1:
                assert self.all_there.wait(TIMEOUT_S)
            if task.round == 3:
                self.is_in_round_3.set()
                assert self.go_on.wait(TIMEOUT_S)
            return (self._act if acts and task.round == 2 else ADD_ONE)(model, task)

        return train

    def _status(self) -> JobStatus:
        found = self.stage.server.job_status(self.id)
        assert found is not None
        return found

    def wait_for_end(self, state: str) -> None:
        """Let round 3 go on, and wait until the job has ended as expected, and its files say so."""
        self.go_on.set()
        log, until_s = self.run.parent / "server.log", time.monotonic() + TIMEOUT_S
        while not (
            log.exists() and re.search(rf"^{state}", log.read_text(), re.MULTILINE) and not lock_owner(self.run)
        ):
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.02)
        while not self._status().is_over:
            assert time.monotonic() < until_s, self._status()
            time.sleep(0.02)

    def look(self) -> Played:
        """Look at all places."""
        at_server = ("--server", self.stage.server.address, "--insecure")

        def command(*arguments: str) -> str:
            return said(*arguments, cwd=self.stage.directory)

        def page(path: str) -> str:
            return json.dumps(self.stage.page.get(path).json(), ensure_ascii=False)

        with self.stage.page.states(self.id) as states:
            streamed = json.dumps(next(states), ensure_ascii=False)
        command("report", str(self.run), "--out", "report.html")
        return Played(
            self.id,
            {
                "flcore status ID": command("status", self.id, *at_server),
                "flcore status ID --json": command("status", self.id, "--json", *at_server),
                "flcore status RUN": command("status", str(self.run)),
                "flcore status RUN --json": command("status", str(self.run), "--json"),
                "the page's stream": streamed,
                "the page's status.json": page("/status.json"),
                "the page's rounds": page(f"/api/jobs/{self.id}/rounds"),
                "flcore logs ID": command("logs", self.id, *at_server),
                "--log-format json": self.stage.json_log(self.id),
                "flcore report RUN": text_of(self.stage.directory / "report.html"),
                "flcore show ID": command("show", self.id, *at_server),
                "flcore show RUN": command("show", str(self.run)),
                "flcore show RUN --json": command("show", str(self.run), "--json"),
                "history.jsonl": (self.run / "history.jsonl").read_text(),
            },
            self.agents[0],
        )

    def close(self) -> None:
        """End the job and its sites. A job that its disk has interrupted holds its slot."""
        self.all_there.set()
        self.go_on.set()
        if not self._status().is_over:
            self.stage.lead.wait(self.id, TIMEOUT_S)
        for agent in self.agents:
            agent.close()


def text_of(page: Path) -> str:
    """Return the text of a page, a line for each row of a table."""
    content = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL)
    rows = re.sub(r"</(tr|p|h1|h2|header|dl)>", "\n", content)
    return html.unescape(re.sub(r"[ \t]+", " ", re.sub(r"<[^>]*>", " ", rows)))
