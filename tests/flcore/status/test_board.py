"""A board folds the events of a job: where each client is, who was left out and why, within bounds."""

import json
import math
import threading
from itertools import pairwise

import pytest

from flcore.errors import Untimely
from flcore.progress import TaskProgress
from flcore.server.events import (
    AnswerRefused,
    CallRefused,
    ClientFailed,
    ClientJoined,
    ClientRevoked,
    HistoryRestored,
    JoinRefused,
    RunContinued,
    RunEnd,
    RunEnded,
    RunEnding,
    TaskRetried,
    WaitingForClients,
)
from flcore.server.history import RoundRecord
from flcore.status import StatusBoard, parse_status
from flcore.status.client_entry import MAX_KINDS, MAX_REASON_CHARACTERS
from flcore.status.fold import MAX_CLIENTS, MAX_REFUSALS
from flcore.status.timeline import ROUNDS_KEPT
from tests.flcore.status.played_job import START_S, PlayedJob

HOSTILE = "bad\n\x1b[2J" + "x" * 5_000


def test_a_client_goes_through_the_phases_of_its_task() -> None:
    job = PlayedJob()
    job.join("north", "south")
    job.send("north", "south")
    assert job.client("north").phase == job.client("south").phase == "queued"
    job.download("north")
    assert job.client("north").phase == "training" and job.client("south").phase == "queued"
    job.upload("north")
    job.answer("north")
    job.fold("north")
    assert job.phases("north") == ["queued", "downloading", "training", "queued", "uploading", "checked", "folded"]
    status = job.board.snapshot()
    assert (status.state, status.task, status.round, status.asked, status.answered) == ("running", "train", 1, 2, 1)
    assert job.client("north").answers == 1 and job.client("south").answers == 0


def test_a_timeline_has_no_gap_and_its_last_phase_is_open_until_the_round_is_over() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.download("north")
    job.upload("north")
    job.answer("north")
    phases = [each for each in job.board.timeline(1) if each.client == "north"]
    assert all(before.end_s == after.begin_s for before, after in pairwise(phases))
    assert phases[-1].end_s is None
    job.finish()
    assert all(each.end_s is not None for each in job.board.timeline(1))


def test_bytes_and_rates_of_a_client_are_those_of_its_transfers() -> None:
    job = PlayedJob()
    job.join("north", "south")
    job.send("north", "south")
    job.download("north")
    assert job.client("north").megabytes_per_s == pytest.approx(0.5)  # 1 MB after the first piece, in 2 s
    job.upload("north")
    north, south = job.client("north"), job.client("south")
    assert (north.bytes_sent, north.bytes_received) == (2_000_000, 6_000_000)
    assert north.megabytes_per_s == pytest.approx(2.0)  # 6 MB in 3 s
    assert (south.bytes_sent, south.bytes_received, south.megabytes_per_s) == (0, 0, 0.0)
    status = job.board.snapshot()
    assert (status.bytes_sent, status.bytes_received) == (2_000_000, 6_000_000) and status.megabytes_per_s > 0


def test_a_client_that_has_the_model_begins_with_its_task() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north", task="validate", payload_id="model-1")
    job.download("north", task="validate")
    job.answer("north", task="validate")
    job.finish()
    job.send("north", round_number=2, payload_id="model-1")
    assert job.phases("north", 2) == ["training"]
    job.send("north", round_number=3, payload_id="model-2")
    assert job.phases("north", 3) == ["queued"]


@pytest.mark.parametrize("failure_comes_first", [True, False])
def test_a_refused_update_is_refused_and_not_failed(failure_comes_first: bool) -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.download("north")
    failure = ClientFailed("train", "north", "element 3 is nan", 1)
    refusal = AnswerRefused("train", "north", 1, 7, "non-finite", "element 3 is nan")
    job.tell(*((failure, refusal) if failure_comes_first else (refusal, failure)))
    north = job.client("north")
    assert (north.phase, north.refusals, north.last_reason) == ("refused", {"non-finite": 1}, "element 3 is nan")
    status = job.board.snapshot()
    assert status.refusals == {"non-finite": 1}
    [shown] = status.last_refusals
    assert (shown.client, shown.task, shown.round, shown.kind) == ("north", "train", 1, "non-finite")


def test_a_late_answer_is_counted_and_its_client_stays_where_it_was() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.tell(ClientFailed("train", "north", "it did not answer within the deadline of 5 s", 1))
    assert job.client("north").phase == "failed"
    job.tell(AnswerRefused("train", "north", 1, 7, Untimely.kind, "not taken: the attempt has closed without it"))
    assert job.client("north").phase == "failed" and job.client("north").refusals == {"untimely": 1}
    job.send("north", round_number=2)
    job.tell(AnswerRefused("train", "north", 1, 7, "non-finite", "an update of the round before"))
    assert job.client("north").phase == "queued"


def test_sessions_that_end_with_the_run_are_not_lost() -> None:
    job = PlayedJob(clients=("north", "south", "west"))
    job.join("north", "south", "west")
    job.send("north", "south", "west")
    for client in ("north", "south"):
        job.download(client)
    job.leave("south")
    job.tell(RunEnding())
    job.leave("north")
    job.leave("west")
    job.tell(RunEnded("aborted by alice", failed=True, end="aborted"))
    found = {client.name: (client.phase, client.last_reason) for client in job.board.snapshot().clients}
    assert found == {"north": ("training", ""), "south": ("lost", "its connection was lost"), "west": ("queued", "")}
    assert not any(client.is_connected for client in job.board.snapshot().clients)


def test_a_site_may_report_any_numbers_as_its_progress() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    for done, total in ((-1.0, 2.0), (3.0, 2.0), (math.nan, 2.0), (1.0, math.nan), (math.inf, 1.0), (0.0, 0.0)):
        job.tell(TaskProgress("north", "train", 1, 3, done, total))
        assert job.client("north").progress is None
    job.tell(TaskProgress("north", "train", 1, 3, 1.0, 2.0))
    assert job.client("north").progress == 0.5


def test_a_lost_client_takes_up_its_task_where_it_was_when_it_comes_back() -> None:
    job = PlayedJob()
    job.join("north", "south")
    job.send("north", "south")
    job.download("north")
    job.leave("north")
    lost = job.client("north")
    assert (lost.phase, lost.is_connected, lost.last_reason) == ("lost", False, "its connection was lost")
    job.join("north")
    assert job.client("north").phase == "training"
    job.leave("north")
    job.tell(ClientFailed("train", "north", "its connection was lost and not back within 5 s", 1))
    assert job.client("north").phase == "lost" and job.client("north").failures == 1
    job.join("north")  # too late for this round
    assert job.client("north").phase == "lost" and job.client("north").is_connected


def test_a_client_whose_code_raises_has_failed() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.download("north")
    job.tell(ClientFailed("train", "north", "task 'train' raised ValueError: no data", 1))
    assert job.client("north").phase == "failed" and "no data" in job.client("north").last_reason
    job.send("north")  # it is retried, and answers
    job.upload("north")
    job.answer("north")
    assert job.phases("north")[-4:] == ["training", "queued", "uploading", "checked"]


def test_progress_of_a_task_is_shown_until_its_end() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.tell(TaskProgress("north", "train", 1, 3, 20, 80))
    assert job.client("north").progress == 0.25 and job.client("north").phase == "training"
    job.upload("north")
    assert job.client("north").progress is None


def test_a_job_waits_runs_and_ends() -> None:
    job = PlayedJob()
    job.tell(WaitingForClients(0, 2, ("north", "south"), None))
    status = job.board.snapshot()
    assert status.state == "waiting"
    assert status.reason == "0 of the 2 clients needed are connected; not there: north, south"
    job.join("north", "south")
    job.send("north", "south")
    assert (job.board.snapshot().state, job.board.snapshot().reason) == ("running", "")
    job.tell(TaskRetried("train", 1, 1, 2, ("south",), 1, 10, 2.0))
    assert job.board.snapshot().reason == "1 of the 2 answers needed are in; retry 1 of 10 in 2 s"
    job.tell(RunEnded("the job is done", failed=False))
    status = job.board.snapshot()
    assert (status.state, status.reason, status.is_over, status.time_left_s) == ("done", "", True, None)
    assert status.ended_s == job.now


@pytest.mark.parametrize("end", ["failed", "aborted", "stopped", "interrupted"])
def test_each_end_shows_as_what_it_is_with_its_cause(end: RunEnd) -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.tell(RunEnded("the job failed; the server's log says why", True, end, "No space left on device"))
    status = job.board.snapshot()
    assert (status.state, status.reason) == (end, "No space left on device")
    assert [each.end_s for each in job.board.timeline(1)] == [job.now]


def test_the_time_left_follows_from_the_rounds_that_are_over() -> None:
    job = PlayedJob(rounds=5)
    assert job.board.snapshot().time_left_s is None
    job.send("north")
    job.finish(1, seconds=8.0)
    job.send("north", round_number=2)
    job.finish(2, seconds=12.0)
    assert job.board.snapshot().time_left_s == pytest.approx(3 * 10.0)
    job.send("north", round_number=3)
    job.now += 4.0
    assert job.board.snapshot().time_left_s == pytest.approx(3 * 10.0 - 4.0)
    job.now += 100.0  # a slow round is not shorter than none
    assert job.board.snapshot().time_left_s == pytest.approx(2 * 10.0)


def test_a_run_that_goes_on_has_its_earlier_rounds() -> None:
    job = PlayedJob(rounds=5)
    records = tuple(RoundRecord(number, seconds={"round": 2.0}, train={"loss": 1 / number}) for number in (1, 2))
    job.tell(RunContinued("run-1", 2, 5), HistoryRestored(records))
    status = job.board.snapshot()
    assert (status.round, status.rounds_over, status.metrics) == (2, 2, {"loss": 0.5})
    assert [each.round for each in status.last_rounds] == [1, 2] and status.time_left_s == pytest.approx(6.0)
    job.send("north", round_number=2)  # the second round is made again
    again = job.finish(2)
    assert job.board.records() == (records[0], again)


def test_rounds_show_their_record() -> None:
    job = PlayedJob()
    job.send("north")
    assert [each.state for each in job.board.snapshot().last_rounds] == ["running"]
    job.finish(1, failed={"train": {"south": "late"}}, skipped="1 of 2 answers are in", validate={"accuracy": 0.5})
    [shown] = job.board.snapshot().last_rounds
    assert (shown.state, shown.sampled, shown.updates, shown.failed) == ("skipped", 2, 1, 1)
    assert shown.reason == "1 of 2 answers are in; south: late" and shown.validate == {"accuracy": 0.5}
    assert shown.begin_s == START_S + 2


def test_what_clients_send_is_bounded_and_cannot_control_a_terminal() -> None:
    job = PlayedJob(clients=())
    for number in range(MAX_REFUSALS + 10):
        job.tell(JoinRefused(f"{number}{HOSTILE}", HOSTILE), CallRefused("", "f", f"kind-{number}", HOSTILE))
    job.join(HOSTILE)
    job.send(HOSTILE)
    job.tell(ClientFailed("train", HOSTILE, HOSTILE, 1), ClientRevoked(HOSTILE, "f", HOSTILE))
    status = job.board.snapshot()
    assert len(status.last_refusals) == MAX_REFUSALS and len(status.refusals) <= MAX_KINDS + 1
    assert sum(status.refusals.values()) == 2 * (MAX_REFUSALS + 10) + 1
    for refusal in status.last_refusals:
        assert all(text.isprintable() for text in (refusal.client, refusal.kind, refusal.reason))
        assert len(refusal.reason) < 5 * MAX_REASON_CHARACTERS and len(refusal.client) < 400
    [client] = status.clients
    assert client.last_reason.isprintable() and client.name.isprintable() and len(client.name) < 400
    assert {each.client for each in job.board.timeline(1)} == {client.name}


def test_the_number_of_clients_is_bounded_and_the_first_to_leave_goes_first() -> None:
    job = PlayedJob(clients=("north",))
    for number in range(MAX_CLIENTS - 1):
        job.board.observe(ClientJoined(f"c{number}", number))
    job.leave("c7")
    job.leave("c3")
    job.join("new-1")
    names = {client.name for client in job.board.snapshot().clients}
    assert len(names) == MAX_CLIENTS and {"north", "c3", "new-1"} <= names and "c7" not in names
    job.join("new-2", "new-3")
    status = job.board.snapshot()
    names = {client.name for client in status.clients}
    assert "new-2" in names and "c3" not in names and "new-3" not in names  # all others are connected
    assert status.clients_left_out == 3


def test_timelines_are_kept_for_the_last_rounds_only() -> None:
    job = PlayedJob(rounds=ROUNDS_KEPT + 10)
    for number in range(1, ROUNDS_KEPT + 6):
        job.send("north", round_number=number)
        job.finish(number)
    assert job.board.timeline(5) == () and len(job.board.timeline(6)) == 1
    assert job.board.timeline_rounds() == tuple(range(6, ROUNDS_KEPT + 6))
    assert len(job.board.snapshot().last_rounds) == ROUNDS_KEPT
    assert len(job.board.records()) == ROUNDS_KEPT + 5


def test_a_status_survives_json() -> None:
    job = PlayedJob()
    job.join("north")
    job.send("north")
    job.tell(AnswerRefused("train", "north", 1, 7, "non-finite", "element 3 is nan"))
    job.finish()
    status = job.board.snapshot()
    assert parse_status("job", json.dumps(status.to_json()).encode()) == status


def test_a_waiting_thread_wakes_with_the_next_event_and_not_before() -> None:
    board = StatusBoard("job", 3)
    version = board.wait(0)  # it has something to show at once
    assert board.wait(version, timeout_s=0.01) == version
    woken: list[int] = []
    waiting = threading.Thread(target=lambda: woken.append(board.wait(version, timeout_s=60)))
    waiting.start()
    board.observe(ClientJoined("north", 1))
    waiting.join(60)
    assert woken == [board.version] and board.version > version


def test_threads_may_tell_and_look_at_the_same_time() -> None:
    board = StatusBoard("job", 3)

    def tell(client: str) -> None:
        for count in range(300):
            board.observe(ClientJoined(f"{client}-{count % 5}", count))

    threads = [threading.Thread(target=tell, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        board.snapshot()
    for thread in threads:
        thread.join()
    assert len(board.snapshot().clients) == 15
