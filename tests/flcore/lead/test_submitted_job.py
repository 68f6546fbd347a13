"""A submitted job: waited for, aborted, deleted; its history, model and files."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_transport import Refused

import flcore
from flcore import RoundRecord
from flcore.errors import DownloadError, HistoryError, JobFailed, NoModel
from flcore.federation.messages import SiteProgress, WaitForJob
from flcore.lead.connection import FederationConnection
from tests.flcore.lead.fake_server import FakeServer

RECORDS = [RoundRecord(1, ("north",), validate={"loss": 0.5}), RoundRecord(2, ("north",), validate={"loss": 0.25})]
HISTORY = "".join(f"{record.to_json()}\n" for record in RECORDS).encode()


def model_files(directory: Path, name: str = "model", shard_bytes: int = 1 << 20) -> dict[str, bytes]:
    """Return a model's files as a server offers them: one, or shards and an index."""
    arrays = {"w": np.full((2, 3), 1.5, np.float32), "b": np.full(300, 1.5, np.float32)}
    flcore.save(arrays, directory / f"{name}.safetensors", shard_bytes=shard_bytes)
    return {f"run/{path.name}": path.read_bytes() for path in directory.iterdir() if path.is_file()}


def in_a_second(function: object, *arguments: object, **keys: object) -> None:
    threading.Timer(0.3, function, arguments, keys).start()  # type: ignore[arg-type]


def test_waiting_returns_when_the_job_is_done(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job(state="queued"))
    in_a_second(server.update, job.id, state="running")
    threading.Timer(0.6, server.update, [job.id], {"state": "done", "round": 20}).start()
    assert job.wait(20).state == "done"
    assert server.count(WaitForJob) == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("failed", r"digits-1 has failed: no quorum; see `flcore show digits-1`"),
        ("aborted", r"digits-1 was aborted: no quorum"),
    ],
)
def test_waiting_raises_if_the_job_ends_otherwise(
    server: FakeServer, federation: FederationConnection, state: str, message: str
) -> None:
    job = federation.job(server.add_job(state=state, reason="no quorum"))
    with pytest.raises(JobFailed, match=message):
        job.wait()


def test_waiting_ends_at_its_limit_and_the_job_goes_on(server: FakeServer, federation: FederationConnection) -> None:
    server.poll_s = 0.2
    job = federation.job(server.add_job())
    with pytest.raises(TimeoutError, match=r"digits-1: expected its end within 0\.5 s, but it is running; it goes on"):
        job.wait(0.5)
    assert job.state == "running"


def test_waiting_that_ends_while_the_server_is_away_says_so(
    server: FakeServer, federation: FederationConnection
) -> None:
    job = federation.job(server.add_job())
    server.fail_next(1_000_000)
    with pytest.raises(TimeoutError, match=r"within 0\.2 s.*; its server is away: fl.* cannot be .*; it goes on"):
        job.wait(0.2)


def test_waiting_begins_also_while_the_server_is_away(
    server: FakeServer, federation: FederationConnection, notices: list[str]
) -> None:
    job = federation.job(server.add_job(state="done"))
    server.fail_next(5)
    assert job.wait(20).state == "done"
    assert len(notices) == 1


def test_waiting_outlives_a_restart_of_the_server(
    server: FakeServer, federation: FederationConnection, notices: list[str]
) -> None:
    job = federation.job(server.add_job())
    server.poll_s = 0.1
    in_a_second(server.fail_next, 3)
    threading.Timer(0.8, server.update, [job.id], {"state": "done"}).start()
    assert job.wait(20).state == "done"
    assert len(notices) == 1


def test_each_change_is_seen_once(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job())
    seen = []
    for summary in job.follow():
        seen.append((summary.state, summary.round))
        server.update(job.id, **({"state": "done"} if summary.round == 2 else {"round": summary.round + 1}))
    assert seen == [("running", 0), ("running", 1), ("running", 2), ("done", 2)]


def history_of(rounds: int) -> bytes:
    return "".join(f"{RoundRecord(n, validate={'loss': 1 / n}).to_json()}\n" for n in range(1, rounds + 1)).encode()


def test_each_finished_round_is_yielded_once(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job(state="queued"))
    seen = list[RoundRecord]()

    def finish(rounds: int, **fields: object) -> None:
        server.files[job.id] = {"run/history.jsonl": history_of(rounds) + b'{"round": half of the next'}
        server.update(job.id, round=rounds, **fields)

    steps = iter([(4, {}), (5, {"state": "done"})])
    finish(1, state="running")
    for record in job.rounds():
        seen.append(record)
        if record.round in (1, 4):  # the next ones end in quick succession
            rounds, fields = next(steps)
            finish(rounds, **fields)
    assert [record.round for record in seen] == [1, 2, 3, 4, 5]
    assert seen[3].validate == {"loss": 0.25}


def test_a_round_that_is_written_again_after_a_restart_is_yielded_once(
    server: FakeServer, federation: FederationConnection
) -> None:
    job = federation.job(server.add_job(round=1))
    server.files[job.id] = {"run/history.jsonl": history_of(2)}
    rounds = job.rounds()
    assert [next(rounds).round, next(rounds).round] == [1, 2]
    longer = RoundRecord(2, seconds={"round": 1.5}).to_json() + "\n" + RoundRecord(3).to_json() + "\n"
    server.files[job.id] = {"run/history.jsonl": history_of(1) + longer.encode()}
    server.update(job.id, round=3, state="done")
    assert [record.round for record in rounds] == [3]


def test_the_rounds_of_a_job_that_fails_before_the_first_one_are_none(
    server: FakeServer, federation: FederationConnection
) -> None:
    job = federation.job(server.add_job(state="failed", reason="no quorum"))
    assert list(job.rounds()) == []


def test_a_damaged_history_is_an_error(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job(state="done", round=2))
    server.files[job.id] = {"run/history.jsonl": history_of(1) + b"[]\n"}
    with pytest.raises(HistoryError, match="line 2 of the history of digits-1"):
        list(job.rounds())


def test_a_reason_that_changes_alone_is_seen_too(server: FakeServer, federation: FederationConnection) -> None:
    server.poll_s = 0.1
    job = federation.job(server.add_job(state="queued"))
    seen = []
    for summary in job.follow():
        seen.append((summary.state, summary.reason))
        server.update(job.id, **({"state": "done"} if summary.reason else {"reason": "waits for a slot"}))
    assert seen == [("queued", ""), ("queued", "waits for a slot"), ("done", "waits for a slot")]


def test_the_history_is_the_records_of_the_rounds(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job())
    assert job.history == []
    server.part_bytes = 100
    server.files[job.id] = {"run/history.jsonl": HISTORY, "run/old/history.jsonl": b"other"}
    assert job.history == RECORDS


def test_the_model_is_opened_from_a_temporary_place(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job())
    with pytest.raises(NoModel, match="expected a model called model, got none"):
        job.model()
    server.part_bytes = 500
    server.files[job.id] = model_files(tmp_path)
    with job.model() as model:
        assert model.tensor("w").tolist() == [[1.5] * 3] * 2
        assert model.tensor("b").shape == (300,)
    with pytest.raises(NoModel, match=r"called best, got none.*; it has a last one; set server.best in job.toml"):
        job.model(best=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"state": "queued", "reason": "waits for a slot"},
            r"it is queued, 20 rounds \(waits for a slot\); wait for its",
        ),
        ({"state": "running"}, "it is running, 0 of 20 rounds are over; wait for its next round"),
        (
            {"state": "failed", "reason": "no quorum"},
            r"it is failed, 0 of 20 rounds are over \(no quorum\); see `flcore s",
        ),
        (
            {"state": "aborted", "reason": "aborted by bob"},
            r"it is aborted, .* \(aborted by bob\); see `flcore show digits",
        ),
        ({"state": "done", "round": 20}, "it is done, 20 of 20 rounds are over; see `flcore show digits-1`"),
    ],
)
def test_a_job_without_a_model_says_how_it_stands(
    server: FakeServer, federation: FederationConnection, fields: dict[str, Any], words: str
) -> None:
    job = federation.job(server.add_job(**fields))
    for best in (False, True):
        with pytest.raises(flcore.NoModel, match=words):
            job.model(best=best)


def test_the_last_model_of_a_job_that_failed_later_is_opened(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job(state="failed", reason="no quorum", round=3))
    server.part_bytes, server.files[job.id] = 500, model_files(tmp_path)
    with job.model() as model:
        assert model.tensor("w").tolist() == [[1.5] * 3] * 2


def test_a_model_in_shards_comes_with_all_of_them(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job())
    (tmp_path / "source").mkdir()
    server.part_bytes = 500
    server.files[job.id] = model_files(tmp_path / "source", "best", shard_bytes=1200)
    assert len(server.files[job.id]) == 3
    with job.model(tmp_path / "got", best=True) as model:
        assert model.tensor("w").tolist() == [[1.5] * 3] * 2
    assert len(list((tmp_path / "got").iterdir())) == 3
    with job.model(tmp_path / "got", best=True) as again:  # nothing is fetched twice
        assert again.tensor("b")[0] == 1.5


def test_a_download_has_all_files_and_a_report(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job(state="done", round=2, rounds=2))
    (tmp_path / "source").mkdir()
    server.part_bytes, seen = 1_000, list[tuple[int, int]]()
    server.files[job.id] = {**model_files(tmp_path / "source"), "run/history.jsonl": HISTORY, "server.log": b"log\n"}
    files = job.download(tmp_path / "out", observe=lambda done, total: seen.append((done, total)))
    assert {each.name: each.path.read_bytes() for each in files} == server.files[job.id]
    assert {each.change for each in files} == {"new"}
    total = sum(map(len, server.files[job.id].values()))
    assert seen == sorted(seen) and seen[-1] == (total, total)
    report = (tmp_path / "out/report.txt").read_text()
    assert "done, 2 of 2 rounds are over" in report and "0.25" in report
    assert {each.change for each in job.download(tmp_path / "out")} == {"unchanged"}


def test_a_download_overwrites_nothing_by_itself(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job())
    server.files[job.id] = {"server.log": b"of the job"}
    (tmp_path / "server.log").write_bytes(b"mine")
    with pytest.raises(DownloadError, match="--overwrite"):
        job.download(tmp_path)
    assert (tmp_path / "server.log").read_bytes() == b"mine"
    assert [each.change for each in job.download(tmp_path, overwrite=True)] == ["replaced"]


def test_a_report_replaces_only_a_report_of_the_job(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job())
    (tmp_path / "report.txt").write_text("mine")
    with pytest.raises(DownloadError, match=r"report\.txt: expected no file, or the report of digits-1"):
        job.download(tmp_path)
    assert (tmp_path / "report.txt").read_text() == "mine"
    job.download(tmp_path, overwrite=True)
    server.update(job.id, round=7)
    job.download(tmp_path)
    assert "7 of 20 rounds" in (tmp_path / "report.txt").read_text()
    with pytest.raises(DownloadError, match="the report of digits-12"):
        federation.job(server.add_job("digits-12")).download(tmp_path)


def test_a_download_of_names_that_leave_the_directory_writes_nothing(
    server: FakeServer, federation: FederationConnection, tmp_path: Path
) -> None:
    job = federation.job(server.add_job())
    server.files[job.id] = {"server.log": b"log", "../../evil": b"x"}
    with pytest.raises(DownloadError, match="within the job"):
        job.download(tmp_path / "a/out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_job_is_aborted_and_deleted_by_its_lead(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job())
    with pytest.raises(Refused, match="abort it first"):
        job.delete()
    job.abort()
    assert job.state == "aborted" and job.summary.reason == "aborted by alice"
    with pytest.raises(Refused, match="got one that is over"):
        job.abort()
    job.delete()
    with pytest.raises(Refused, match="expected the id of a job"):
        _ = job.state


def test_the_job_of_another_lead_is_not_aborted(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job(lead="bob"))
    with pytest.raises(Refused, match=r"got alice \(this kit is that of alice, lead of hospitals\)"):
        job.abort()
    assert job.state == "running"


def test_progress_and_logs(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job())
    step = SiteProgress(task="train", round=3, done=40, total=100)
    server.details[job.id] = {"progress": {"north": step}, "sites": {"south": "refused: not at night"}}
    server.log(job.id, b"hello\n")
    assert job.progress == {"north": step}
    assert job.details.sites == {"south": "refused: not at night"}
    assert job.logs() == "hello\n"


def test_a_job_shows_what_was_last_seen_of_it(server: FakeServer, federation: FederationConnection) -> None:
    job = federation.job(server.add_job(round=3))
    asked = len(server.requests)
    assert repr(job) == "<SubmittedJob digits-1, running, round 3 of 20, at fl.example.org:8470>"
    assert len(server.requests) == asked
