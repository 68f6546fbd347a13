"""No caller fills the audit log: its refusals are limited, and an unchanged one is no event."""

from pathlib import Path

from flcore.federation.event_limit import BURST_EVENTS, EventLimit
from flcore.federation.messages import JobDetails, ShowJob
from tests.flcore.federation.small_federation import Federation, packed, refused, write_job


def test_each_caller_has_a_burst_and_then_a_rate() -> None:
    now = [0.0]
    limit = EventLimit(lambda: now[0])
    assert [limit.take("a") for _ in range(BURST_EVENTS + 1)] == [True] * BURST_EVENTS + [False]
    assert limit.take("b")
    now[0] = 10.0
    assert [limit.take("a") for _ in range(2)] == [True, False]


def test_refused_requests_without_an_end_fill_no_audit_log(federation: Federation) -> None:
    mallory, alice = federation.person("mallory"), federation.person("alice")
    for _ in range(3 * BURST_EVENTS):
        with refused("no-such-id"):
            mallory.ask(ShowJob(id="small-9"), JobDetails)
    with refused("no-such-id"):
        alice.ask(ShowJob(id="small-9"), JobDetails)
    entries = (federation.directory / "audit.jsonl").read_text().splitlines()
    assert BURST_EVENTS <= sum("lead/mallory" in entry for entry in entries) <= BURST_EVENTS + 5
    assert sum("lead/alice" in entry for entry in entries) == 1


def test_a_site_that_repeats_its_refusal_is_one_entry(federation: Federation, tmp_path: Path) -> None:
    lead, scheduler = federation.lead(), federation.server._scheduler
    federation.agent("south", refuse=lambda _: "no data")
    job_id = lead.submit(packed(write_job(tmp_path / "small", quorum=1)))
    lead.wait_for(job_id, lambda found: found.sites.get("south") == "refused: no data")
    for _ in range(20):
        scheduler.job_refused(1, "south", "no data")
    audit = federation.directory / "audit.jsonl"
    assert audit.read_text().count('"event":"site-refused"') == 1
    for number in range(3 * BURST_EVENTS):
        scheduler.job_refused(1, "south", f"reason {number}")
    assert BURST_EVENTS < audit.read_text().count('"event":"site-refused"') <= BURST_EVENTS + 10
