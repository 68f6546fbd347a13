"""Connections cut at drawn bytes of a transfer: it resumes, sends one window again at most, and the bits are the same.

`make stress` makes 200 cuts in each direction and loses 1,000 receipts, half of them in each plan, and prints the
figures.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from flcore_transport import WINDOW_PIECES, GrpcServer, Inbox, Receipt, split_address
from flcore_transport.piece_format import PIECE_BODY_BYTES

from flcore.client import client as client_module
from flcore.server.federation_state import FederationState
from flcore.server.open_attempt import OpenAttempt
from flcore.server.uploads import UploadCall
from tests.flcore.faulty_federation import CODE, CountingConnection, FaultyStage, Log, Result, Trial, federation
from tests.flcore.network import DOWN, UP, Direction, Fault, FaultKind, Network, network_to

SEED = 20
PIECES = 6
HEADERS_BYTES = 16_384
"""More than the headers of HTTP/2 and the control messages of a transfer."""

OWN_SOCKET, SHARED_SOCKET = 33_000, 700
"""Elements of a model that is sent on a socket of its own, and of one that is sent on the session's."""
ELEMENTS = PIECES * PIECE_BODY_BYTES // 4


@pytest.fixture
def sent_down(monkeypatch: pytest.MonkeyPatch) -> "Counter[tuple[str, int]]":
    """How many pieces the server has sent, by client and assignment."""
    sent: Counter[tuple[str, int]] = Counter()
    piece_sent = FederationState.piece_sent

    def counted(state: FederationState, open_attempt: OpenAttempt, client: str, nbytes: int, *, is_last: bool) -> None:
        sent[client, open_attempt.attempt.assignment_id] += 1
        piece_sent(state, open_attempt, client, nbytes, is_last=is_last)

    monkeypatch.setattr(FederationState, "piece_sent", counted)
    return sent


@dataclass
class Cuts:
    """Draws a cut for the first call of each transfer: before any of its bytes with the same chance."""

    sizes: dict[Direction, int]
    kind: FaultKind
    drawn: random.Random = field(default_factory=lambda: random.Random(SEED))
    points: dict[tuple[str, int], int] = field(default_factory=dict)

    def __call__(self, network: Network, transfer: str, assignment_id: int, _: int) -> None:
        direction = DOWN if transfer == "download" else UP
        at = self.points[transfer, assignment_id] = self.drawn.randrange(self.sizes[direction])
        network.inject(Fault(self.kind, direction, at))


def sizes_of(trial: Trial) -> dict[Direction, int]:
    """The bytes of an undisturbed download and upload, each on a connection of its own after that of the session."""
    _, download, upload, *_ = trial.network.links
    return {DOWN: download.passed[DOWN], UP: upload.passed[UP]}


def cut_transfers(
    directory: Path, rounds: int, kind: FaultKind, sent_down: "Counter[tuple[str, int]]", plan: str
) -> None:
    """Cut each download and each upload of a job once."""
    tasks = {"train": "weights"}
    with federation(directory / "undisturbed", ELEMENTS, rounds=rounds, tasks=tasks, plan=plan) as trial:
        expected = Result.of(trial.result(), trial.log)
        sizes = sizes_of(trial)
    assert all(size > PIECES * PIECE_BODY_BYTES for size in sizes.values())
    sent_down.clear()
    cuts = Cuts(sizes, kind)
    with federation(directory / "cut", ELEMENTS, cuts, rounds=rounds, tasks=tasks, plan=plan) as trial:
        outcome = trial.result(rounds * 5)
        assert Result.of(outcome, trial.log) == expected, "a cut has changed the model, an execution or the history"
        assert len(trial.log.executions) == 2 * rounds, "a cut has cost a training"
        assert not any(record.failed for record in outcome.history)
        links = trial.network.links
        hits = sum(link.is_hit for link in links)
        # What the sender put on the wire of the cut connection and of the next one, beyond an undisturbed transfer, in
        # whole pieces. Neither a piece that the server had encoded and not yet sent is among them, nor the one that was
        # under way at the cut: a part of it comes again whatever the window.
        on_wire = [
            (first.taken[way] + second.taken[way] - sizes[way] - HEADERS_BYTES) // PIECE_BODY_BYTES
            for first, second in pairwise(links)
            for way in (first.fault.direction,)
            if first.is_hit
        ]
    again: dict[str, list[int]] = {"download": [], "upload": []}
    for transfer, assignment_id in cuts.points:
        up = sum(count for (number, _), count in trial.far.sent.items() if number == assignment_id)
        again[transfer].append((up if transfer == "upload" else sent_down["far", assignment_id]) - PIECES)
    assert hits == len(cuts.points) == 2 * rounds
    assert len(on_wire) == hits and max(on_wire) <= WINDOW_PIECES, f"more than a window came again: {on_wire}"
    print(f"{hits} cuts, {kind.name.lower()}, seed {SEED}, plan {plan}: at most {max(on_wire)} pieces came again")
    assert max(again["upload"]) <= WINDOW_PIECES, f"more than a window was encoded again: {again['upload']}"
    for transfer, counts in again.items():
        assert min(counts) >= 0
        mean = sum(counts) / len(counts)
        print(f"    {len(counts)} {transfer}s: at most {max(counts)} encoded again, {mean:.2f} of {PIECES} in the mean")


def test_transfers_resume_after_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_down: "Counter[tuple[str, int]]"
) -> None:
    monkeypatch.setattr(client_module, "RETRY_S", 0.02)
    accept = Inbox.accept

    def accept_slowly(inbox: Inbox, piece: bytes) -> None:
        time.sleep(0.02)  # the sender fills all buffers on the way
        accept(inbox, piece)

    monkeypatch.setattr(Inbox, "accept", accept_slowly)
    cut_transfers(tmp_path, 2, FaultKind.RESET, sent_down, "batch")


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "plan"), [(FaultKind.RESET, "batch"), (FaultKind.TRUNCATE, "streaming")])
def test_a_hundred_cuts_in_each_direction(
    tmp_path: Path, sent_down: "Counter[tuple[str, int]]", kind: FaultKind, plan: str
) -> None:
    cut_transfers(tmp_path, 100, kind, sent_down, plan)


@dataclass
class LostReceipts:
    """Cuts the connection of the first call of each answer: after its last piece, before its receipt is sent.

    Half of the cuts, by seed, are before the commit, half after it.
    """

    real_commit: Callable[[UploadCall], Receipt]
    rounds: int
    networks: dict[str, Network] = field(default_factory=dict)
    drawn: random.Random = field(default_factory=lambda: random.Random(SEED))
    lost: "Counter[tuple[str, int]]" = field(default_factory=Counter)
    """How many receipts were lost, by client and assignment."""
    commits: set[str] = field(default_factory=set)

    def commit(self, call: UploadCall) -> Receipt:
        upload = call._upload
        if upload.key in self.commits or call._open_attempt.round > self.rounds:
            return self.real_commit(call)
        self.commits.add(upload.key)
        self.lost[upload.client, call._open_attempt.attempt.assignment_id] += 1
        if self.drawn.random() < 0.5:
            self.networks[upload.client].reset()
            return self.real_commit(call)
        receipt = self.real_commit(call)
        self.networks[upload.client].reset()
        return receipt


def lose_receipts(
    directory: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, clients: int, elements: int, plan: str
) -> None:
    """Lose the receipt of each answer of a job once, but for a last round: after that a goodbye ends the clients.

    Each client has a network of its own.
    """
    losses, log = LostReceipts(UploadCall.commit, rounds), Log()
    monkeypatch.setattr(UploadCall, "commit", lambda call: losses.commit(call))
    names = [f"client-{number}" for number in range(clients)]
    (directory / "large.py").write_text(CODE.format(elements=elements))
    bounds = {"max_weight": 1000, "max_abs": 1e6, "max_metrics": 3}
    pool = ThreadPoolExecutor(2 * clients + 2)
    stage = FaultyStage("grpc", directory, pool)
    with ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(stage.close)
        stage.open(
            wait_for=clients,
            clients=names,
            rounds=rounds + 1,
            plan=plan,
            bounds=bounds,
            model="large.py:initial_model",
            quorum=clients,
        )
        assert isinstance(stage.server, GrpcServer)
        connections: dict[str, CountingConnection] = {}
        for number, name in enumerate(names):
            network = losses.networks[name] = stack.enter_context(network_to(split_address(stage.server.address)[1]))
            connections[name] = CountingConnection(f"localhost:{network.port}", lambda *_: None)
            stage.start_client(name, {"train": log.function(name, number + 0.5, 1.0)}, connections[name])
        outcome = stage.outcome.result(rounds * 20)
    lost, answers = rounds * clients, (rounds + 1) * clients
    assert sum(losses.lost.values()) == lost
    assert len(log.executions) == len(set(log.executions)) == answers, "a lost receipt has cost a training"
    assert [sorted(record.updates) for record in outcome.history] == [names] * (rounds + 1)
    assert not any(record.failed or record.asked_again for record in outcome.history)
    # A client has them before it executes the next task. The goodbye may overtake the receipts of the last round, of
    # which none was lost.
    came = {(name, assignment): connections[name].receipts[assignment] for name, assignment in losses.lost}
    assert came == dict.fromkeys(losses.lost, 1), "a lost receipt did not come again, or came twice"
    print(f"receipts, seed {SEED}, plan {plan}, {elements} elements: {lost} of {lost} lost ones came again")
    print(f"    {len(log.executions)} trainings for {answers} answers")


def test_a_lost_receipt_comes_again_and_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_receipts(tmp_path, monkeypatch, 3, 3, OWN_SOCKET, "batch")


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("elements", "plan"), [(OWN_SOCKET, "batch"), (SHARED_SOCKET, "streaming")])
def test_five_hundred_lost_receipts_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elements: int, plan: str
) -> None:
    lose_receipts(tmp_path, monkeypatch, 125, 4, elements, plan)
