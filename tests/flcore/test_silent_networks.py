"""Networks that lose bytes without an error: black holes, half-open, slow and duplicated connections of one client.

Keepalives end a silent connection, and the stall timeout ends a silent transfer, whichever is first. The other client
is not held up, and no training is repeated.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flcore_transport.piece_format import PIECE_BODY_BYTES

from tests.flcore.faulty_federation import KEEPALIVE_MS, NO_FAULT, Result, Trial, federation, hurry
from tests.flcore.network import DOWN, UP, Direction, Fault, FaultKind, Network

PIECES, MANY_PIECES = 3, 10
"""Many are more than the windows of HTTP/2 and of flow control hold: the server knows that its client does not read."""

ROUNDS = 3
FAULTY_ROUND = 2
STALL_TIMEOUT_S = 1.0
BOUND_S = 12.0
"""The longest that a job of three rounds with one silence may take: far more than the timeouts, far less than 30 s."""

DUPLICATE, SLOW = Fault(FaultKind.DUPLICATE), Fault(latency_s=0.005, bytes_per_s=40e6)

HELD_UP_S = 3.0
"""The other client has answered after this time in each round, whatever the silent one does."""


def job(directory: Path, faults: dict[str, Fault], pieces: int = PIECES, **server: Any) -> Any:
    """A job of three rounds. A fault of the session is that of its first connection, others are of the second round."""

    def begins(network: Network, transfer: str, _: int, executed: int) -> None:
        if executed == FAULTY_ROUND - (transfer == "download") and transfer in faults:
            network.inject(faults.pop(transfer))

    options: dict[str, Any] = {"rounds": ROUNDS, "tasks": {"train": "weights"}, "on_quorum_failure": "retry"}
    first = faults.pop("session", NO_FAULT)
    return federation(directory, pieces * PIECE_BODY_BYTES // 4, begins, first=first, **options | server)


Undisturbed = Callable[[int], tuple[Result, dict[str, dict[Direction, int]]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, kernels: None) -> Undisturbed:
    """The result of an undisturbed job, by the number of its pieces, and the bytes of its connections."""
    directory = tmp_path_factory.mktemp("undisturbed")

    @cache
    def run(pieces: int) -> tuple[Result, dict[str, dict[Direction, int]]]:
        with job(directory, {}, pieces) as trial:
            return Result.of(trial.result(60), trial.log), passed_by(trial)

    return run


def passed_by(trial: Trial) -> dict[str, dict[Direction, int]]:
    session, download, upload, *_ = trial.network.links
    return {"session": session.passed, "download": download.passed, "upload": upload.passed}


def silence(
    directory: Path,
    undisturbed: Undisturbed,
    place: str,
    kind: FaultKind,
    direction: Direction,
    pieces: int = PIECES,
) -> str:
    """Silence one connection after a part of its bytes, and return the figures."""
    expected, sizes = undisturbed(pieces)
    fault = Fault(kind, direction, sizes[place][direction] // (2 if pieces == PIECES else 10))
    began = time.monotonic()
    with job(directory, {place: fault}, pieces, stall_timeout_s=STALL_TIMEOUT_S) as trial:
        outcome = trial.result(60)
        took_s = time.monotonic() - began
        assert sum(link.is_hit for link in trial.network.links) == 1
        assert Result.of(outcome, trial.log) == expected
        assert len(trial.log.executions) == 2 * ROUNDS, "a silence has cost a training"
    assert took_s < BOUND_S
    slowest_s = max(record.updates["near"].seconds for record in outcome.history)
    assert slowest_s < HELD_UP_S, "a silent client has held up the other one"
    return (
        f"{kind.name.lower()} {direction.value}, {place}: the job took {took_s:.1f} s, near {slowest_s:.1f} s at most"
    )


def test_keepalives_end_a_silent_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    hurry(monkeypatch)
    silence(tmp_path, undisturbed, "upload", FaultKind.BLACK_HOLE, UP)


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_each_silence_in_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed) -> None:
    hurry(monkeypatch)
    for place in ("session", "download", "upload"):
        for kind in (FaultKind.BLACK_HOLE, FaultKind.HALF_OPEN):
            for direction in (UP, DOWN):
                print(f"keepalive {KEEPALIVE_MS} ms, {silence(tmp_path, undisturbed, place, kind, direction)}")


@pytest.mark.stress
@pytest.mark.parametrize("kind", [FaultKind.BLACK_HOLE, FaultKind.HALF_OPEN])
def test_each_silent_transfer_without_keepalives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed, kind: FaultKind
) -> None:
    hurry(monkeypatch, keepalive_ms=20_000)
    for place, direction in (("download", DOWN), ("upload", UP)):
        print(f"no keepalive, {silence(tmp_path, undisturbed, place, kind, direction, MANY_PIECES)}")


@pytest.mark.stress
def test_a_duplicated_download_and_a_slow_upload_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    hurry(monkeypatch)
    harmless(tmp_path, undisturbed, {"download": DUPLICATE, "upload": SLOW})


@pytest.mark.stress
def test_a_slow_download_and_a_duplicated_upload_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    hurry(monkeypatch)
    harmless(tmp_path, undisturbed, {"download": SLOW, "upload": DUPLICATE})


def harmless(directory: Path, undisturbed: Undisturbed, faults: dict[str, Fault]) -> None:
    """Run a job whose faults cost time alone."""
    with job(directory, faults) as trial:
        assert Result.of(trial.result(60), trial.log) == undisturbed(PIECES)[0]
        assert len(trial.log.executions) == 2 * ROUNDS
