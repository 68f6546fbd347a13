"""The metrics of a server, as a scrape finds them."""

import re
from pathlib import Path

import numpy as np
import pytest

from flcore import Arrays, Task, Update
from flcore.metrics import FAMILIES, Family
from flcore.server.events import (
    AnswerRefused,
    ClientFailed,
    JoinRefused,
    RoundFinished,
    StorageOpened,
    TaskRetried,
)
from flcore.server.history import RoundRecord
from flcore.status import StatusBoard
from flcore.status.observed_run import ObservedRun
from tests.flcore.conftest import Stage, adding
from tests.flcore.metrics.observed import WatchedJob, observed_run, small_contract, watch
from tests.flcore.status.played_job import PlayedJob

pytest.importorskip("prometheus_client")

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flcore.federation.standing_server import FederationState
from flcore.metrics.server_metrics import ServerMetrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: ServerMetrics) -> Samples:
    """Return the samples of a scrape, by name and labels."""
    text = generate_latest(metrics.registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_and_helps_follow_the_conventions_of_prometheus(family: Family) -> None:
    assert re.fullmatch(r"flcore(_[a-z]+)+", family.name)
    assert not re.search(r"_(total|count|sum|bucket|info|milliseconds|megabytes)$", family.name)
    assert family.help.endswith(".") and "\n" not in family.help
    assert set(family.labels) <= {"job_id", "phase", "reason"}, "no label has names of clients"
    assert family.kind != "histogram" or family.name.endswith("_seconds")


def test_a_scrape_says_what_a_job_does(tmp_path: Path) -> None:
    metrics, job = ServerMetrics(tmp_path / "absent"), WatchedJob()
    with metrics.observe_run(observed_run(job.board)) as job.observe:
        job.tell(StorageOpened(1 << 30, 1 << 29, lambda: 4_096, tmp_path))
        job.join("north", "south")
        job.play_round(1)
        job.send("north", "south", round_number=2, payload_id="model-1")
        job.tell(AnswerRefused("train", "south", 2, 7, "out-of-bounds", "too large"))
        job.tell(ClientFailed("train", "south", "too large", 2))
        job.tell(TaskRetried("train", 2, 1, 2, ("south",), 1, 3, 0.0), JoinRefused("east", "not invited"))
        samples = scrape(metrics)
    assert value(samples, "flcore_sent_bytes_total", job_id="played-1") == 4_000_000
    assert value(samples, "flcore_received_bytes_total", job_id="played-1") == 12_000_000
    assert value(samples, "flcore_sent_pieces_total", job_id="played-1") == 4
    assert value(samples, "flcore_received_pieces_total", job_id="played-1") == 4
    assert value(samples, "flcore_rounds_total", job_id="played-1") == 1
    assert value(samples, "flcore_current_round", job_id="played-1") == 2
    assert value(samples, "flcore_planned_rounds", job_id="played-1") == 3
    assert value(samples, "flcore_answers_total", job_id="played-1") == 2
    assert value(samples, "flcore_client_failures_total", job_id="played-1") == 1
    assert value(samples, "flcore_task_retries_total", job_id="played-1") == 1
    assert value(samples, "flcore_refusals_total", job_id="played-1", reason="out-of-bounds") == 1
    assert value(samples, "flcore_refusals_total", job_id="played-1", reason="join") == 1
    assert value(samples, "flcore_connected_clients", job_id="played-1") == 2
    assert value(samples, "flcore_clients", job_id="played-1", phase="refused") == 1
    assert value(samples, "flcore_clients", job_id="played-1", phase="queued") == 1
    assert value(samples, "flcore_budget_bytes", job_id="played-1") == 1 << 30
    assert value(samples, "flcore_staging_budget_bytes", job_id="played-1") == 1 << 29
    assert value(samples, "flcore_staged_bytes", job_id="played-1") == 4_096
    assert value(samples, "flcore_running_jobs") == value(samples, "flcore_job_running", job_id="played-1") == 1
    assert 0 < value(samples, "flcore_disk_free_bytes") <= value(samples, "flcore_disk_size_bytes")
    assert value(samples, "process_resident_memory_bytes") > 10_000_000
    assert ("flcore_queued_jobs", frozenset()) not in samples, "there is no queue without a federation"


def test_phases_are_counted_by_their_duration(tmp_path: Path) -> None:
    metrics, job = ServerMetrics(tmp_path), WatchedJob()
    with metrics.observe_run(observed_run(job.board)) as job.observe:
        job.join("north", "south")
        job.play_round(1)
    samples, run = scrape(metrics), "played-1"  # after the end, when the timeline has been read
    assert value(samples, "flcore_round_phase_seconds_sum", job_id=run, phase="round") == 10.0
    assert value(samples, "flcore_round_phase_seconds_bucket", job_id=run, phase="round", le="15.0") == 1
    assert value(samples, "flcore_round_phase_seconds_bucket", job_id=run, phase="round", le="5.0") == 0
    for phase in ("queued", "downloading", "training", "uploading", "checked"):
        spans = [
            each.end_s - each.begin_s
            for each in job.board.timeline(1)
            if each.phase == phase and each.end_s is not None
        ]
        assert value(samples, "flcore_client_phase_seconds_count", job_id=run, phase=phase) == len(spans) > 0
        assert value(samples, "flcore_client_phase_seconds_sum", job_id=run, phase=phase) == sum(spans)
        for bound in ("1.0", "15.0", "+Inf"):
            counted = value(samples, "flcore_client_phase_seconds_bucket", job_id=run, phase=phase, le=bound)
            assert counted == sum(seconds <= float(bound.replace("+", "")) for seconds in spans)


def test_the_queue_and_the_sites_of_a_federation(tmp_path: Path) -> None:
    metrics = ServerMetrics(tmp_path)
    metrics.show_federation(lambda: FederationState(4, 2))
    samples = scrape(metrics)
    assert value(samples, "flcore_queued_jobs") == 4 and value(samples, "flcore_connected_sites") == 2
    assert value(samples, "flcore_running_jobs") == 0


def test_labels_are_bounded_and_have_no_text_of_clients(tmp_path: Path) -> None:
    metrics, job = ServerMetrics(tmp_path), WatchedJob()
    with metrics.observe_run(observed_run(job.board)) as job.observe:
        job.join("north", 'evil"}\n')
        for number in range(200):
            job.tell(AnswerRefused("train", "north", 1, 1, f"kind-{number}", "secret words"))
        job.finish(1, failed={"train": {"north": "secret words"}})
        text = generate_latest(metrics.registry).decode()
        refusals = [each for each in scrape(metrics) if each[0] == "flcore_refusals_total"]
    assert len(refusals) <= 33
    assert "evil" not in text and "north" not in text and "secret" not in text


def test_the_names_of_phases_that_a_job_gives_are_bounded(tmp_path: Path) -> None:
    metrics, board = ServerMetrics(tmp_path), PlayedJob().board
    with metrics.observe_run(observed_run(board)) as observe:
        for number in range(1, 101):
            observe(RoundFinished(RoundRecord(number, seconds={"round": 1.0, f"phase-{number}": 1.0})))
        samples = scrape(metrics)
    counts = {
        dict(labels)["phase"]: count
        for (name, labels), count in samples.items()
        if name.endswith("round_phase_seconds_count")
    }
    assert len(counts) == 32 and sum(counts.values()) == 200 and counts["other"] == 70 and counts["round"] == 100


def test_jobs_that_are_over_keep_their_last_values_and_are_bounded(tmp_path: Path) -> None:
    metrics = ServerMetrics(tmp_path)
    for number in range(25):
        board = PlayedJob().board
        with metrics.observe_run(ObservedRun(f"job-{number}", small_contract(), board, tmp_path)):
            pass
    jobs = {dict(labels).get("job_id") for _, labels in scrape(metrics)} - {None}
    assert jobs == {f"job-{number}" for number in range(5, 25)}
    samples = scrape(metrics)
    assert value(samples, "flcore_job_running", job_id="job-24") == 0 == value(samples, "flcore_running_jobs")
    assert ("flcore_clients", frozenset({("job_id", "job-24"), ("phase", "queued")})) not in samples


def refused_in_round_2(model: Arrays, task: Task) -> Update:
    arrays = {name: array.copy() for name, array in model.items()}
    if task.round == 2:
        arrays["b"][7] = np.nan
    return Update(arrays, weight=1.0, metrics={"added": 0.0})


def test_the_counters_of_a_run_are_those_of_its_history(stage: Stage, tmp_path: Path) -> None:
    stage.open(wait_for=2, quorum=1, rounds=3, clients=["good", "odd"])
    stage.client("good", adding(1.0))
    stage.client("odd", refused_in_round_2)
    history, _ = stage.result()
    metrics = ServerMetrics(tmp_path)
    watch(stage.events, StatusBoard.of(stage.job.contract), metrics.observe_run)
    samples = scrape(metrics)
    assert value(samples, "flcore_rounds_total", job_id="made-1") == len(history) == 3
    assert value(samples, "flcore_sent_bytes_total", job_id="made-1") == sum(each.bytes_sent for each in history)
    assert value(samples, "flcore_received_bytes_total", job_id="made-1") >= sum(
        part.bytes for each in history for part in each.updates.values()
    )
    assert value(samples, "flcore_answers_total", job_id="made-1") == sum(len(each.updates) for each in history) == 5
    assert value(samples, "flcore_refusals_total", job_id="made-1", reason="non-finite") == 1
    for phase in {phase for each in history for phase in each.seconds}:
        total = sum(each.seconds[phase] for each in history if phase in each.seconds)
        found = value(samples, "flcore_round_phase_seconds_sum", job_id="made-1", phase=phase)
        assert found == pytest.approx(total)
