"""The status of a federation: what its leads, its admins and nobody else see, and that a change is told at once."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from flcore_transport import Ask, GrpcConnection

from flcore import Arrays, Task, Update
from flcore.federation.messages import MAX_BODY_BYTES, GetStatus, RequestContent, StatusVersion
from flcore.federation.status_waits import fitting
from flcore.federation.told_state import FOR_ITS_LEAD
from flcore.lead.connection import FederationConnection
from flcore.lead.server_calls import ServerCalls
from flcore.status import ClientStatus, FederationStatus, JobStatus, RoundStatus, SiteStatus, parse_status
from tests.flcore.conftest import adding
from tests.flcore.federation.small_federation import Federation, Lead, packed, refused, write_job

TIMEOUT_S = 60.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens the second round of clients that train with `until(gate)`."""
    event = threading.Event()
    yield event
    event.set()


def until(gate: threading.Event) -> Callable[[Arrays, Task], Update]:
    def train(model: Arrays, task: Task) -> Update:
        if task.round == 2:
            assert gate.wait(TIMEOUT_S)
        return adding(1.0)(model, task)

    return train


def job_status(lead: Lead, job_id: str, version: str = "") -> tuple[JobStatus, str]:
    reply, body = lead.ask(GetStatus(id=job_id, version=version), StatusVersion)
    return parse_status("job", body), reply.version


def federation_status(lead: Lead) -> FederationStatus:
    return parse_status("federation", lead.ask(GetStatus(), StatusVersion)[1])


def changes(lead: Lead, job_id: str) -> Iterator[JobStatus]:
    version = ""
    while True:
        status, version = job_status(lead, job_id, version)
        yield status


@pytest.fixture
def running(federation: Federation, tmp_path: Path, gate: threading.Event) -> str:
    """A job of alice that is in its second round."""
    alice = federation.person("alice")
    for site in ("north", "south"):
        federation.agent(site, until(gate))
    job_id = alice.submit(packed(write_job(tmp_path / "small", rounds=3)))
    for status in changes(alice, job_id):
        if status.round == 2 and {client.phase for client in status.clients} == {"training"}:
            return job_id
    raise AssertionError


def test_the_lead_of_a_job_and_an_admin_see_its_clients(federation: Federation, running: str) -> None:
    for caller in (federation.person("alice"), federation.person("root", "admin")):
        status, _ = job_status(caller, running)
        assert (status.id, status.job, status.state) == (running, "small", "running")
        assert (status.round, status.rounds_over, status.rounds) == (2, 1, 3)
        assert [(client.name, client.task, client.round) for client in status.clients] == [
            ("north", "train", 2),
            ("south", "train", 2),
        ]
        assert status.resources is not None and status.time_left_s is not None
        [in_list] = federation_status(caller).jobs
        assert (in_list.id, in_list.last_rounds) == (running, status.last_rounds)
        assert [client.phase for client in in_list.clients] == ["training", "training"]


def test_other_leads_see_that_it_runs_and_no_client(federation: Federation, running: str) -> None:
    bob = federation.person("bob")
    status, _ = job_status(bob, running)
    assert (status.id, status.state, status.rounds_over, status.rounds) == (running, "running", 1, 3)
    assert (status.clients, status.last_refusals, status.metrics, status.resources) == ((), (), {}, None)
    assert federation_status(bob) == FederationStatus((status,))


def test_a_site_sees_nothing_and_an_unknown_job_is_refused(federation: Federation, running: str) -> None:
    for request in (GetStatus(), GetStatus(id=running)):
        with refused("not-allowed", "expected the role lead or admin, got north"):
            federation.person("north", "client").ask(request, StatusVersion)
    with refused("no-such-id", "expected the id of a job"):
        federation.person("alice").ask(GetStatus(id="small-99"), StatusVersion)


def test_admins_alone_see_the_sites(federation: Federation, running: str) -> None:
    sites = (SiteStatus("north", True, (running,)), SiteStatus("south", True, (running,)))
    assert federation_status(federation.person("root", "admin")).sites == federation.server.status().sites == sites
    assert federation_status(federation.person("alice")).sites == ()
    assert list(federation.server.boards()) == [running]


def test_a_change_answers_a_call_that_waits_for_it(federation: Federation, running: str, gate: threading.Event) -> None:
    alice = federation.person("alice")
    _, version = job_status(alice, running)
    request = RequestContent(request=GetStatus(id=running, version=version))
    waiting = federation.server._answer(None, Ask(request.to_bytes()))
    assert isinstance(waiting, Future)
    gate.set()
    assert json.loads(waiting.result(TIMEOUT_S).body)["id"] == running


def test_an_aborted_and_a_failed_job_show_as_what_they_are(
    federation: Federation, running: str, gate: threading.Event, tmp_path: Path
) -> None:
    alice = federation.person("alice")
    alice.abort(running)
    gate.set()
    alice.wait(running)
    for status in changes(alice, running):
        if [client.is_connected for client in status.clients] == [False, False]:
            break
    assert (status.state, status.reason, status.rounds_over) == ("aborted", "aborted by alice", 1)

    broken = "def run(control):\n    control.sample()\n    raise SystemExit('no /srv/data/today.csv')\n"
    failed = alice.submit(packed(write_job(tmp_path / "bad", "bad", workflow="flow.py:run", flow=broken)))
    alice.wait(failed)
    for caller, reason in ((alice, "SystemExit: no today.csv"), (federation.person("bob"), FOR_ITS_LEAD)):
        status, _ = job_status(caller, failed)
        assert (status.state, status.reason) == ("failed", reason)
    assert [job.state for job in federation_status(alice).jobs] == ["failed", "aborted"]


def test_a_job_that_waits_says_for_what_and_one_that_is_done_has_its_rounds(
    federation: Federation, tmp_path: Path
) -> None:
    alice = federation.person("alice")
    job_id = alice.submit(packed(write_job(tmp_path / "small")))
    alice.wait_for(job_id, lambda found: "waits" in found.summary.reason and "turn" not in found.summary.reason)
    status, _ = job_status(alice, job_id)
    assert status.state == "queued" and status.reason == alice.show(job_id).summary.reason
    for site in ("north", "south"):
        federation.agent(site)
    alice.wait(job_id)
    status, _ = job_status(alice, job_id)
    assert (status.state, status.reason, status.rounds_over) == ("done", "", 2)
    assert [each.updates for each in status.last_rounds] == [2, 2]


def test_a_lead_watches_its_job_to_the_end(
    federation: Federation, running: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flcore.lead.status_reader.REDRAW_S", 0.0)
    with closing(ServerCalls(GrpcConnection(federation.server.address))) as calls:
        connection = FederationConnection(calls)
        job = connection.job(running)
        assert job.status.state == "running" and connection.status.jobs[0].id == running
        seen = []
        for status in job.watch():
            seen.append(status)
            gate.set()
        assert seen[0].state == "running" and seen[-1].state == "done" and seen[-1].rounds_over == 3
        assert all(before != after for before, after in pairwise(seen))


def test_a_large_status_fits_into_a_reply() -> None:
    clients = tuple(ClientStatus(f"hospital-{n:04}", last_reason="because " * 30) for n in range(1_000))
    rounds = tuple(RoundStatus(n, "over", train={f"m{m}": 1.0 for m in range(50)}) for n in range(50))
    job = JobStatus("large", "large-1", "running", clients=clients, last_rounds=rounds, rounds_over=50)
    body = fitting(job, 100_000)
    found = parse_status("job", body)
    assert len(body) <= 100_000 and found.rounds_over == 50
    assert len(found.clients) + found.clients_left_out == 1_000 and 0 < len(found.clients) < 1_000
    assert found.last_rounds == rounds[50 - len(found.last_rounds) :]
    federation = FederationStatus((job,) * 20, tuple(SiteStatus(f"s{n}", True) for n in range(100)))
    body = fitting(federation)
    assert len(body) <= MAX_BODY_BYTES and len(parse_status("federation", body).jobs) == 20
    assert len(fitting(federation, 2_000)) <= 2_000
