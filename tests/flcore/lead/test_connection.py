"""The connection of a lead: what it submits, lists and finds; profiles, kits and addresses that cannot be used."""

import os
from pathlib import Path
from typing import Any

import pytest
from flcore_transport import ConnectionLost, Refused
from pydantic import JsonValue

import flcore
from flcore.errors import CertificateError, JobError, PackError, ProfileError
from flcore.federation.messages import CloneJob, PutPack
from flcore.identity.kit import load_signing_key
from flcore.job.pack import open_pack, pack_job
from flcore.lead.connection import FederationConnection
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer
from tests.flcore.lead.kits import federation_authority, unpacked_kit


def test_jobs_are_listed_by_state_the_newest_first(server: FakeServer, federation: FederationConnection) -> None:
    for number, state in enumerate(("done", "running", "queued"), 1):
        server.add_job(f"digits-{number}", state=state)
    assert [job.id for job in federation.jobs()] == ["digits-3", "digits-2", "digits-1"]
    assert [job.id for job in federation.jobs(["queued", "done"])] == ["digits-3", "digits-1"]
    assert [job.id for job in federation.jobs(limit=1)] == ["digits-3"]


@pytest.mark.parametrize("wanted", ["digits-13", "digits", "digits 12", "digits-012", ""])
def test_an_id_of_no_job_is_refused_with_similar_ones(
    server: FakeServer, federation: FederationConnection, wanted: str
) -> None:
    server.add_job("digits-12")
    with pytest.raises(Refused, match="expected the id of a job") as raised:
        federation.job(wanted)
    assert raised.value.kind == "no-such-id"
    assert ("did you mean digits-12?" if wanted else "flcore list") in str(raised.value)


def test_a_job_is_cloned_with_changes(server: FakeServer, federation: FederationConnection) -> None:
    server.add_job("digits-1", state="failed")
    cloned = federation.clone("digits-1", {"server.rounds": 30})
    assert cloned.id == "digits-2" and cloned.state == "queued"
    assert cloned.details.changes == {"server.rounds": 30}
    with pytest.raises(Refused, match="did you mean"):
        federation.clone("digits", {})


def test_a_lost_reply_to_a_submission_is_not_answered_by_a_second_one(
    server: FakeServer, federation: FederationConnection
) -> None:
    server.add_job("digits-1", state="failed")
    server.fail_next()
    with pytest.raises(ConnectionLost, match=r"the job may be queued: see `flcore list` before you submit it again"):
        federation.clone("digits-1")
    assert server.count(CloneJob) == 1


def test_a_connection_says_where_and_as_whom(federation: FederationConnection) -> None:
    assert repr(federation) == "<FederationConnection to fl.example.org:8470 as alice, lead of hospitals>"
    assert federation.address == "fl.example.org:8470"


def test_without_a_profile_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ProfileError, match=r"expected a profile 'default' in .*flcore login KIT"):
        flcore.connect()
    with pytest.raises(ProfileError, match=r"flcore login KIT --profile other"):
        flcore.connect("other")


def test_a_kit_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="expected the directory of an unpacked kit, got none"):
        flcore.connect(kit=tmp_path / "alice")
    (tmp_path / "alice.zip").write_bytes(b"PK")
    with pytest.raises(CertificateError, match=r"alice\.zip: expected the directory.*unzip KIT\.zip"):
        flcore.connect(kit=tmp_path / "alice.zip")


def test_plaintext_needs_an_address_on_this_machine() -> None:
    with pytest.raises(ProfileError, match="expected --server and no kit with --insecure"):
        flcore.connect(insecure=True)
    with pytest.raises(ProfileError, match="the server's address"):
        flcore.connect(server="no port", insecure=True)
    with pytest.raises(flcore.FlcoreError, match=r"fl\.example\.org"):
        flcore.connect(server="fl.example.org:8470", insecure=True)


def write_job(directory: Path, **files: str) -> Path:
    directory.mkdir()
    (directory / "job.toml").write_text(
        'name = "line"\nclients = 2\n[server]\nmodel = "code.py:initial_model"\nrounds = 3\n'
        '[client]\nexecutor = "code.py"\n[tasks.train]\nreturns = "weights"\n[bounds]\nmax_weight = 10\n'
    )
    (directory / "code.py").write_text("def initial_model(seed):\n    return {}\n\n\ndef train(model, task): ...\n")
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return directory


def test_a_pack_of_more_than_4_gib_is_refused_before_a_call(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    large = tmp_path / "large.flpack"
    large.touch()
    os.truncate(large, 1 << 32)  # a sparse file: it takes no space
    with pytest.raises(PackError, match=r"large\.flpack: expected a pack of at most 4,294,967,295 bytes, got 4,294"):
        federation.submit(large)
    assert server.count(PutPack) == 0


def test_a_directory_is_packed_sent_and_queued(
    server: FakeServer, federation: FederationConnection, tmp_path: Path, notices: list[str]
) -> None:
    server.part_bytes = 500
    job = federation.submit(write_job(tmp_path / "line"), {"server.rounds": 20})
    assert job.id == "myjob-1" and job.details.changes == {"server.rounds": 20}
    pack_job(flcore.Job.load(tmp_path / "line"), tmp_path / "line.flpack")
    assert list(server.packs.values()) == [(tmp_path / "line.flpack").read_bytes()]
    assert notices == []
    sent = server.count(PutPack)
    federation.submit(tmp_path / "line.flpack")  # the server has it
    assert server.count(PutPack) == sent + 1


def test_an_interrupted_submission_is_resumed_by_the_next(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    server.part_bytes, line = 100, write_job(tmp_path / "line")

    def interrupt(done: int, _: int) -> None:
        if done >= 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federation.submit(line, observe=interrupt)
    assert [len(held) for held in server.packs.values()] == [300] and server.jobs == {}
    seen = list[int]()
    federation.submit(line, observe=lambda done, _: seen.append(done))
    assert seen[0] == 300 and len(server.packs) == 1


@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        ("def train(:\n", {}, r"code\.py, line 1: expected Python .*, got a syntax error"),
        ("def train(model, task): ...\n", {}, r"server\.model: expected 'initial_model' at the top level of code\.py"),
        ("def initial_model(seed): ...\n", {}, r"tasks\.train: expected 'train' at the top level of code\.py"),
        (None, {"server.workflow": "code.py:run"}, r"server\.workflow: expected 'run' at the top level of code\.py"),
    ],
)
def test_code_that_cannot_run_is_not_sent(
    server: FakeServer,
    federation: FederationConnection,
    tmp_path: Path,
    code: str | None,
    changes: dict[str, Any],
    words: str,
) -> None:
    line = write_job(tmp_path / "line")
    if code is not None:
        (line / "code.py").write_text(code)
    pack_job(flcore.Job.load(line), tmp_path / "line.flpack")
    for job in (line, tmp_path / "line.flpack"):
        with pytest.raises(JobError, match=words):
            federation.submit(job, changes)
    assert server.requests == []


def test_files_that_stay_behind_are_named(
    federation: FederationConnection, tmp_path: Path, notices: list[str], server: FakeServer
) -> None:
    server.part_bytes = 10_000
    federation.submit(write_job(tmp_path / "line", patients_csv="1,2", site_toml="path = 1"))
    assert notices == ["not in the pack: patients.csv, site.toml (`flcore job pack` says why)"]


@pytest.mark.parametrize("changes", [{"server.round": 20}, {"server.rounds": -1}, {"name": "other"}])
def test_a_change_that_is_none_is_refused_before_anything_is_sent(
    server: FakeServer, federation: FederationConnection, changes: dict[str, JsonValue], tmp_path: Path
) -> None:
    line = write_job(tmp_path / "line")
    pack_job(flcore.Job.load(line), tmp_path / "line.flpack")
    for job in (line, tmp_path / "line.flpack"):
        with pytest.raises(flcore.JobError):
            federation.submit(job, changes)
    assert server.requests == []


def test_a_damaged_pack_is_refused_before_it_is_sent(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    packed = pack_job(flcore.Job.load(write_job(tmp_path / "line")), tmp_path / "line.flpack")
    content = bytearray(packed.path.read_bytes())
    content[-200] ^= 1
    packed.path.write_bytes(content)
    with pytest.raises(PackError):
        federation.submit(packed.path)
    assert server.requests == []


def test_a_signature_needs_a_job_and_a_kit(federation: FederationConnection, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="expected a kit with the key that signs packs"):
        federation.submit(write_job(tmp_path / "line"), sign=True)


def test_a_signed_submission_is_signed_by_the_kit(server: FakeServer, calls: ServerCalls, tmp_path: Path) -> None:
    kit = unpacked_kit(federation_authority(tmp_path), tmp_path)
    server.part_bytes = 10_000
    with FederationConnection(calls, kit) as federation:
        federation.submit(write_job(tmp_path / "line"), sign=True)
        (tmp_path / "sent.flpack").write_bytes(next(iter(server.packs.values())))
        signature = open_pack(tmp_path / "sent.flpack").signature
        assert signature is not None
        assert signature.verify([load_signing_key(kit).public]) == "alice"
        with pytest.raises(PackError, match="expected a job to sign, got a pack"):
            federation.submit(tmp_path / "sent.flpack", sign=True)
