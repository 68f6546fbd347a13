"""A client without a server: what it sends again, what it does not send, and what it says."""

import threading
from pathlib import Path

import numpy as np
import pytest
from flcore_transport import ConnectionLost, Goodbye, Refused, TaskAssignment, TransportError, Welcome, Withdrawal

from flcore import Arrays, JobFailed, Model, Task, Update
from flcore.client import outage
from flcore.job.messages import WelcomeContent, parse_content
from flcore.model.wire_format import WireFormat
from tests.flcore.client.played import MODEL, WELCOME, Played, assignment, welcome


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_assignments_are_run_first_in_first_out(played: Played) -> None:
    played.start(assignment(1, 1), assignment(2, 2))
    played.server.wait_for_uploads(2)
    played.finish()
    assert [number for number, _, _ in played.server.uploads] == [1, 2]
    assert played.trained == [1, 2]


@pytest.mark.parametrize("upload", ["float32", "int8[64]"])
def test_a_repeated_assignment_is_answered_with_the_same_bytes_and_no_training(played: Played, upload: str) -> None:
    if upload != "float32":
        played.wire = {"upload": upload}
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(1, 1))  # the same assignment: its receipt was lost on the server's side
    played.server.wait_for_uploads(2)
    played.say(assignment(2, 1))  # another assignment with the same content
    played.server.wait_for_uploads(3)
    played.say(assignment(3, 2))
    played.server.wait_for_uploads(4)
    played.finish()
    first, second, third, other = played.server.uploads
    assert first[1:] == second[1:] == third[1:]
    assert [number for number, _, _ in played.server.uploads] == [1, 1, 2, 3]
    assert played.trained == [1, 2]
    if upload != "float32":
        assert other[2] != first[2], "what rounding left out of the first went into the next"


def test_each_call_carries_the_token_of_its_own_assignment(played: Played) -> None:
    played.start(assignment(1, 1), assignment(2, 1))  # the cached answer goes out under the second one's token
    played.server.wait_for_uploads(2)
    played.train = lambda model, task: Update({"other": np.zeros(1, np.float32)}, weight="none")  # type: ignore[arg-type]
    played.say(assignment(3, 2))
    played.server.wait_for_report()
    played.finish()
    assert played.server.tokens == [
        ("download", b"token 1"),
        ("upload", b"token 1"),
        ("upload", b"token 2"),
        ("download", b"token 3"),
        ("report", b"token 3"),
    ]


def test_rounding_errors_of_an_answer_that_was_not_received_are_not_recorded(played: Played) -> None:
    played.wire = {"upload": "int8[64]"}
    played.server.losing = [Refused("untimely", "the round has closed without it")]
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(2, 2))
    played.server.wait_for_uploads(2)
    played.finish()
    first, second = played.server.uploads
    assert first[2] == second[2]
    assert "client-1: the server refused: the round has closed without it" in played.told


def test_another_model_is_another_assignment(played: Played) -> None:
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(assignment(2, 1, payload_id="another model"))
    played.server.wait_for_uploads(2)
    played.finish()
    assert played.trained == [1, 1]
    assert played.server.downloads == 2


def test_an_assignment_withdrawn_while_it_runs_is_finished_and_its_answer_not_sent(played: Played) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        if task.round == 1:
            begun.set()
            assert may_go_on.wait(20)
        return played.uneven(model, task)

    played.train = train
    played.start(assignment(1, 1), assignment(2, 2), assignment(3, 3))
    assert begun.wait(20)
    played.say(Withdrawal(1), Withdrawal(2), assignment(4, 1))
    while not played.server.says.empty():
        threading.Event().wait(0.01)
    may_go_on.set()
    played.server.wait_for_uploads(2)
    played.finish()
    assert [number for number, _, _ in played.server.uploads] == [3, 4]
    assert played.trained == [1, 3, 1], "the second is not begun"
    assert not played.server.reports
    assert "client-1: assignment 1 is over without this client's answer" in played.told


def test_an_upload_is_not_retried_for_a_withdrawn_assignment(played: Played) -> None:
    played.server.losing = [ConnectionLost("gone"), ConnectionLost("gone")]
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.say(Withdrawal(1), assignment(2, 2))
    with played.server.changed:
        assert played.server.changed.wait_for(lambda: any(number == 2 for number, _, _ in played.server.uploads), 20)
    played.finish()
    assert [number for number, _, _ in played.server.uploads].count(1) <= 3, "and once more, for its receipt"


def test_a_withdrawal_ends_transfers_that_may_wait_for_a_lost_message(played: Played) -> None:
    played.start(assignment(1, 1), Withdrawal(7))
    played.server.wait_for_uploads(1)
    with played.server.changed:
        played.server.changed.wait_for(lambda: played.server.ended_transfers, 20)
    played.finish()
    assert played.server.ended_transfers == 1


def test_a_call_that_is_refused_for_the_networks_sake_is_repeated(played: Played) -> None:
    played.server.losing = [Refused("unknown-session", "join again"), Refused("superseded", "by a newer call")]
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(3)
    played.finish()
    assert played.trained == [1] and len({content for _, content, _ in played.server.uploads}) == 1


@pytest.mark.parametrize(("corrupt", "is_read"), [(3, True), (4, False)])
def test_a_corrupt_piece_of_the_model_is_requested_again(played: Played, corrupt: int, is_read: bool) -> None:
    played.server.corrupt_downloads = corrupt
    played.start(assignment(1, 1))
    if is_read:
        played.server.wait_for_uploads(1)
    else:
        with played.server.changed:
            assert played.server.changed.wait_for(lambda: played.server.reports, 20)
        assert "the model could not be read: piece 0 of 1: corrupt" in played.server.reports[0].message
    played.finish()
    assert played.server.downloads == 4 and played.trained == [1] * is_read


def test_a_job_that_failed_raises(played: Played) -> None:
    played.start(Goodbye("the job failed: no quorum", failed=True))
    with pytest.raises(JobFailed, match="the job failed: no quorum"):
        played.ended.result(20)


def test_a_server_that_cannot_be_reached_is_told_once_for_each_cause_and_tried_again(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flcore.client.client.RETRY_S", 0.001)
    causes = [ConnectionLost("x cannot be reached: name")] * 3 + [TransportError("it answered with UNIMPLEMENTED")] * 2
    for cause in causes:
        played.say(cause)
    played.start()
    played.finish()
    assert played.server.sessions == 6
    assert played.told == [
        "client-1: x cannot be reached: name; trying again",
        "client-1: it answered with UNIMPLEMENTED; trying again",
        "client-1: joined stage:1",
    ]


def test_a_refusal_ends_a_client(played: Played) -> None:
    played.say(Refused("not-invited", "who are you?"))
    played.start()
    with pytest.raises(Refused, match="who are you"):
        played.ended.result(20)


def test_a_refusal_after_the_goodbye_stands_for_it(tmp_path: Path) -> None:
    """The client was disconnected when the server said goodbye, and joins again before the server has gone."""
    done, failed = Played(tmp_path), Played(tmp_path)
    done.say(ConnectionLost("gone"), Refused("over", "the job is done"))
    done.start()
    assert done.ended.result(20) == "the job is done"
    failed.say(ConnectionLost("gone"), Refused("failed", "the job failed: no quorum"))
    failed.start()
    with pytest.raises(JobFailed, match="no quorum"):
        failed.ended.result(20)


def test_delays_grow_and_begin_anew_after_a_good_session(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "JITTER", 0.0)
    waits: list[float] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

    lost = ConnectionLost("gone")
    played.say(*[lost] * 6, WELCOME, lost, lost)
    played.stopping = Stopping()
    played.start()
    played.finish()
    assert waits[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 3.2, 0.2, 0.4]
    assert played.told.count("client-1: the connection is lost; joining again as soon as the server is there") == 1


def test_the_wire_format_of_a_compressed_upload_is_the_contracts(played: Played) -> None:
    played.wire = {"upload": "int8[64]"}
    played.start(assignment(1, 1))
    played.server.wait_for_uploads(1)
    played.finish()
    assert len(played.server.uploads[0][2]) == len(WireFormat.compressed(MODEL.spec, "int8[64]").pieces)


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_answer_computed_for_a_lost_session_answers_the_same_assignment_of_the_next_one(
    tmp_path: Path, on_disk: bool
) -> None:
    """The server is restarted while the client trains: the assignment of the new session asks for the same."""
    played = Played(tmp_path, state=tmp_path / "state" if on_disk else None)
    begun, may_go_on = threading.Event(), threading.Event()

    def train(model: Arrays, task: Task) -> Update:
        begun.set()
        assert may_go_on.wait(20)
        return played.uneven(model, task)

    played.train = train
    played.start(assignment(7, 1))
    assert begun.wait(20)
    played.say(ConnectionLost("the server was killed"), welcome("another secret"), assignment(1, 1))
    while not played.server.says.empty():
        threading.Event().wait(0.01)
    may_go_on.set()
    played.server.wait_for_uploads(1)
    played.finish()
    assert [number for number, _, _ in played.server.uploads] == [1]
    assert played.trained == [1] and played.server.downloads == 1


BIG = Model.of({"w": np.arange(1_300_000, dtype=np.float32), "n": np.arange(300)})
"""Three pieces of floats, and one of integers."""


@pytest.mark.parametrize("how", ["same session", "new session", "withdrawn"])
def test_a_download_is_resumed_at_the_first_missing_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("flcore.client.client.RETRY_S", 0.001)
    played = Played(tmp_path, BIG)
    played.server.cuts = [0, 1, 0, 1]
    downloaded: list[list[float]] = []

    def train(model: Arrays, task: Task) -> Update:
        downloaded.append([float(model["w"][index]) for index in (0, 600_000, -1)] + [int(model["n"][-1])])
        return played.uneven(model, task)

    played.train = train
    layout = BIG.layout
    if how == "same session":
        played.start(assignment(1, 1, layout=layout))
    else:
        # After two pieces the connection is lost, until the other session or assignment begins.
        played.server.cuts = [2]
        played.server.serves = lambda request: (
            request.first_piece == 0 or request.session_secret == "another" or request.assignment_id > 1
        )
        played.start(assignment(1, 1, layout=layout))
        while played.server.downloads < 2:
            threading.Event().wait(0.001)
        if how == "new session":
            played.say(ConnectionLost("killed"), welcome("another", BIG), assignment(1, 1, layout=layout))
        else:
            played.say(Withdrawal(1), assignment(2, 1, layout=layout))
    played.server.wait_for_uploads(1)
    played.say(assignment(3, 2, payload_id="another", layout=layout))
    played.server.wait_for_uploads(2)
    played.finish()
    *resumed, other = played.server.first_pieces
    assert resumed[0] == 0 and other == 0, "another payload begins at its first piece"
    assert resumed == sorted(resumed) and set(resumed[1:]) == ({0, 1, 2} if how == "same session" else {2})
    assert downloaded == [[0.0, 600_000.0, 1_299_999.0, 299]] * 2
    assert played.trained == [1, 2]


def test_a_payload_without_an_id_is_always_downloaded(played: Played) -> None:
    nameless = [TaskAssignment(number, assignment(0, number).content, MODEL.layout) for number in (1, 2)]
    played.start(*nameless)
    played.server.wait_for_uploads(2)
    played.finish()
    assert played.server.first_pieces == [0, 0]


def test_nothing_of_another_run_goes_into_a_run(played: Played) -> None:
    """A server that is killed and started with --fresh asks for the same task again, with the same model."""
    played.wire = {"upload": "int8[64]"}

    def of_run(name: str) -> Welcome:
        content = parse_content(WelcomeContent, WELCOME.content).model_copy(update={"run": name})
        return Welcome(name, content.to_bytes())

    played.start(of_run("a"), assignment(1, 1), assignment(2, 2))
    played.server.wait_for_uploads(2)
    played.say(of_run("b"), assignment(3, 1), assignment(4, 2))
    played.server.wait_for_uploads(4)
    played.finish()
    assert played.trained == [1, 2, 1, 2]
    first, second, third, fourth = (pieces for _, _, pieces in played.server.uploads)
    assert first == third and second == fourth
    assert first != second, "the rounding errors of the first went into the second"
