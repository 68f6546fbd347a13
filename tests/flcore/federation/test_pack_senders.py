"""A pack belongs to those leads who have sent all of its bytes."""

import hashlib
from pathlib import Path

import pytest

from flcore.federation.messages import JobQueued, PackReceived, PutPack, SubmitJob
from tests.flcore.federation.small_federation import Federation, packed, refused, write_job


@pytest.fixture
def pack(tmp_path: Path) -> bytes:
    return packed(write_job(tmp_path / "small"))


def test_a_digest_alone_gives_nobody_a_pack(federation: Federation, pack: bytes) -> None:
    alice, bob, admin = federation.person("alice"), federation.person("bob"), federation.person("root", "admin")
    job_id = alice.submit(pack)
    digest = hashlib.sha256(pack).hexdigest()
    assert alice.show(job_id).pack_digest == admin.show(job_id).pack_digest == digest
    assert bob.show(job_id).pack_digest == ""
    with refused("no-pack", "send it first"):
        bob.ask(SubmitJob(digest=digest), JobQueued)
    # Nor does the claim to have sent it, or bytes of its size.
    assert bob.ask(PutPack(digest=digest, nbytes=len(pack), offset=0), PackReceived)[0].received == 0
    with refused("bad-pack", f"expected a pack with the SHA-256 {digest}"):
        bob.ask(PutPack(digest=digest, nbytes=len(pack), offset=0), PackReceived, bytes(len(pack)))
    with refused("bad-pack", f"expected a pack with the SHA-256 {digest}"):
        bob.ask(PutPack(digest=digest, nbytes=1, offset=0), PackReceived, b"x")
    with refused("no-pack", "send it first"):
        bob.ask(SubmitJob(digest=digest), JobQueued)
    assert admin.ask(SubmitJob(digest=digest), JobQueued)[0].id == "small-2"
    assert bob.submit(pack) == "small-3", "who has its bytes may use them"
    assert bob.submit(pack) == "small-4"


def test_a_lead_completes_what_another_has_begun_and_only_the_first_has_sent_less(
    federation: Federation, pack: bytes
) -> None:
    alice, bob = federation.person("alice"), federation.person("bob")
    digest, half = hashlib.sha256(pack).hexdigest(), len(pack) // 2
    first = PutPack(digest=digest, nbytes=len(pack), offset=0)
    rest = PutPack(digest=digest, nbytes=len(pack), offset=half)
    assert alice.ask(first, PackReceived, pack[:half])[0].received == half
    assert bob.ask(rest, PackReceived, pack[half:])[0].received == 0, "its beginning is not bob's"
    with refused("no-pack"):
        bob.ask(SubmitJob(digest=digest), JobQueued)
    assert bob.submit(pack) == "small-1"
    with refused("no-pack"):
        alice.ask(SubmitJob(digest=digest), JobQueued)
    assert alice.ask(rest, PackReceived, pack[half:])[0].received == len(pack)
    assert alice.ask(SubmitJob(digest=digest), JobQueued)[0].id == "small-2"


def test_after_a_restart_a_lead_has_the_packs_of_its_jobs(federation: Federation, pack: bytes) -> None:
    digest = hashlib.sha256(pack).hexdigest()
    federation.person("alice").submit(pack)
    assert federation.person("bob").put(pack) == digest
    federation.server.close()
    federation.start()
    assert federation.person("alice").ask(SubmitJob(digest=digest), JobQueued)[0].id == "small-2"
    with refused("no-pack"):
        federation.person("bob").ask(SubmitJob(digest=digest), JobQueued)
    assert federation.person("bob").submit(pack) == "small-3"


def test_the_audit_log_has_a_pack_once_for_each_who_has_sent_it(federation: Federation, pack: bytes) -> None:
    digest = hashlib.sha256(pack).hexdigest()
    whole = PutPack(digest=digest, nbytes=len(pack), offset=0)
    for caller in (federation.person("alice"), federation.person("root", "admin"), federation.person("bob")):
        for _ in range(5):
            caller.ask(whole, PackReceived, pack)
    federation.person("alice").submit(pack)
    for _ in range(5):
        federation.person("alice").ask(whole, PackReceived, pack)
    assert (federation.directory / "audit.jsonl").read_text().count('"event":"pack"') == 2
