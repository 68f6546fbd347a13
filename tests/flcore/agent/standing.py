"""A small standing federation for tests of agents: a lobby that offers jobs, and the servers of these jobs.

The lobby does what agents rely on and no more: it sends its offers after each welcome, then `Withdrawal(0)`, and
remembers refusals and requests.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from flcore_layout import ALIGNMENT, Layout, PayloadPart, Segment, SegmentRange
from flcore_transport import Ask, ClientLink, GrpcServer, Outbox, PieceCache, Refused, Reply, TaskAssignment, Withdrawal

from flcore import Job, Outcome
from flcore.agent.agent import Agent, AgentIdentity
from flcore.federation.lobby_messages import JobOffer
from flcore.federation.messages import Done, RequestContent
from flcore.job.messages import AgentJoinContent, parse_content
from flcore.job.pack import Packed
from flcore.server.events import Event
from flcore.server.federation import Federation
from flcore.server.serve import serve

TOML = """
name = "small"
clients = ["north", "south"]
[server]
model = "small.py:init"
rounds = 2
[client]
executor = "small.py"
[tasks.train]
returns = "weights"
"""
CODE = """
import numpy as np, flcore, os, sys, time
def init(seed): return {"w": np.zeros(3, np.float32)}
def train(model, task):
    flcore.progress(1, 2)
    print("trains in", os.getcwd(), flush=True)
    return flcore.Update({"w": model["w"] + 1}, weight=1)
"""


def write_job(directory: Path, code: str = CODE, toml: str = TOML) -> Job:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "job.toml").write_text(toml)
    (directory / "small.py").write_text(code)
    return Job.load(directory)


class PackBytes:
    """A pack as a payload."""

    def __init__(self, content: bytes) -> None:
        self.content = content + bytes(-len(content) % ALIGNMENT)
        self.layout = Layout((PayloadPart("pack", (Segment("uint8", len(self.content)),)),))

    def read(self, range_: SegmentRange) -> list[bytes]:
        return [self.content[range_.first : range_.first + range_.count]]


class Lobby:
    """The service that agents join."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.links: dict[str, ClientLink] = {}
        self.offers: dict[int, tuple[TaskAssignment, PackBytes]] = {}
        self.refusals: list[tuple[str, int, str]] = []
        self.joins = self.downloads = 0
        self.requests: list[tuple[float, Any, bytes]] = []

    def answer(self, _: object, ask: Ask) -> Reply:
        request = parse_content(RequestContent, ask.content).request
        with self.changed:
            self.requests.append((time.monotonic(), request, ask.body))
            self.changed.notify_all()
        return Reply(Done().to_bytes())

    def send(self, message: Any) -> None:
        for link in list(self.links.values()):
            link.send(message)

    def authorize(self, client: str) -> None: ...

    def admit(self, client: str, content: bytes) -> bytes:
        parse_content(AgentJoinContent, content)
        return b""

    def join_refused(self, client: str, reason: str) -> None: ...

    def call_refused(self, client: str, fingerprint: str, kind: str, reason: str) -> None: ...

    def certificate_refused(self, client: str, fingerprint: str, reason: str) -> None: ...

    def client_connected(self, client: str, link: ClientLink) -> None:
        for assignment, _ in list(self.offers.values()):
            link.send(assignment)
        link.send(Withdrawal(0))
        with self.changed:
            self.links[client], self.joins = link, self.joins + 1
            self.changed.notify_all()

    def client_disconnected(self, client: str) -> None:
        with self.changed:
            self.links.pop(client, None)
            self.changed.notify_all()

    def begin_download(self, client: str, assignment_id: int, token: bytes) -> Outbox:
        self.downloads += 1
        if assignment_id not in self.offers:
            raise Refused("untimely", "it is not offered")
        return Outbox(self.offers[assignment_id][1], PieceCache())

    def begin_upload(self, *_: object) -> Any:
        raise Refused("untimely", "an offer has no answer")

    def task_failed(self, client: str, assignment_id: int, token: bytes, message: str) -> None:
        with self.changed:
            self.refusals.append((client, assignment_id, message))
            self.changed.notify_all()

    def until(self, is_so: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Wait until something is so; return it."""
        with self.changed:
            assert self.changed.wait_for(is_so, timeout_s), (self.refusals, self.requests)
            return is_so()


class Standing:
    """A server with a lobby, and the jobs that it hosts."""

    def __init__(self, directory: Path, lobby: Lobby | None = None, port: int = 0) -> None:
        self.directory, self.lobby = directory, lobby or Lobby()
        self.server = GrpcServer(self.lobby, port=port, answer=self.lobby.answer)
        self.address = self.server.address
        self.running: list[Federation] = []

    def offer(self, number: int, job: Job, packed: Packed | None = None, **changes: Any) -> JobOffer:
        """Offer a job to all agents."""
        content = packed.path.read_bytes() if packed else b"no pack"
        values: dict[str, Any] = {
            "id": f"{job.contract.name}-{number}",
            "name": job.contract.name,
            "contract": job.contract.to_json(),
            "contract_fingerprint": job.contract.fingerprint,
            "code_digest": job.code_digest,
            "pack_digest": packed.digest if packed else "0" * 64,
            "pack_nbytes": len(content),
        }
        offer, payload = JobOffer(**values | changes), PackBytes(content)
        assignment = TaskAssignment(number, offer.to_bytes(), payload.layout, offer.pack_digest)
        self.lobby.offers[number] = (assignment, payload)
        self.lobby.send(assignment)
        return offer

    def withdraw(self, number: int) -> None:
        self.lobby.offers.pop(number, None)
        self.lobby.send(Withdrawal(number))

    def close(self) -> None:
        """End without a goodbye."""
        self.server.leave()
        for federation in self.running:
            federation.state.stop_waiting("the test is over")

    def serve(self, number: int, job: Job, observe: Callable[[Event], None] = lambda _: None) -> Outcome:
        """Host a job until it is over, then withdraw its offer."""
        try:
            return serve(
                job,
                lambda service: self.server.host(f"{job.contract.name}-{number}", service),
                started=lambda _, federation: self.running.append(federation),
                observe=observe,
                directory=self.directory / f"runs/{number}",
            )
        finally:
            self.withdraw(number)


@contextmanager
def standing(directory: Path) -> Iterator[Standing]:
    made = Standing(directory)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def agent_of(
    federation: Standing,
    state: Path,
    content: dict[str, Any],
    *,
    now: Callable[[], datetime] | None = None,
    client: str = "north",
    notices: list[str] | None = None,
) -> Iterator[Agent]:
    """Run an agent while the block lasts."""
    said: list[str] = [] if notices is None else notices
    identity = AgentIdentity(client, federation.address, None)
    more: dict[str, Any] = {} if now is None else {"now": now}
    agent = Agent(identity, content, None, state, notify=said.append, show_progress=said.append, **more)
    ended = agent.start()
    try:
        yield agent
    finally:
        agent.stop()
        ended.result(60)
