"""Bytes flipped on the wire, at drawn places of all streams: each is detected or without effect, and none hangs.

Detected: the connection broke, a message or a piece was refused, or the task failed in its attempt and the history says
so. Without effect: nothing of the kind, and the results are the same, as where the byte is the name of gRPC's version.
`make stress` flips hundreds of bytes in plaintext and over TLS, and prints the figures.
"""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flcore_transport import TlsKeys, TransportError
from flcore_transport.identity import ServerTls
from flcore_transport.piece_format import PIECE_BODY_BYTES

from flcore.identity.authority import Authority
from flcore.identity.certificate import utc_now
from flcore.identity.tls import FederationTls
from tests.flcore.faulty_federation import NO_FAULT, Result, Trial, federation, hurry
from tests.flcore.network import DOWN, UP, Direction, Fault, FaultKind, Network

SEED = 20
CONTROL_ELEMENTS = 700
"""A model so small that its pieces go over the session's connection, and most bytes are those of control messages."""

PIECES = 3
PIECE_ELEMENTS = PIECES * PIECE_BODY_BYTES // 4
DEADLINE_S = 20.0
"""Far more than a task takes, on a busy machine, too: only a lost message lets a deadline pass."""

BOUND_S = 4 * DEADLINE_S
"""The longest that one run with one flip may take: two rounds of two tasks, one of which misses its deadline."""

TASKS = {"train": "weights", "validate": "metrics"}
Tls = tuple[ServerTls, dict[str, TlsKeys]] | None


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch, kernels: None) -> list[str]:
    """The transport's errors since the list was cleared. Retries and keepalives are faster than those of a job."""
    hurry(monkeypatch)
    made: list[str] = []

    def noted(error: TransportError, *given: object) -> None:
        Exception.__init__(error, *given)
        if "ended the session" not in str(error):  # as each session does in the end
            made.append(f"{type(error).__name__}: {error}")

    monkeypatch.setattr(TransportError, "__init__", noted)
    return made


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A federation's TLS, and the keys of its clients."""
    authority = Authority.create(tmp_path_factory.mktemp("tls") / "certs", "hospitals", ["localhost"], now=utc_now())
    root = (authority.server_directory / "ca.pem").read_bytes()
    keys = {}
    for name in ("far", "near"):
        pair = authority.issue(name, now=utc_now())
        keys[name] = TlsKeys(pair.key_pem, pair.certificate.pem, root)
    return FederationTls(authority.server_directory), keys


class Flips:
    """Runs a small job again and again, each time with one byte flipped on the first connection of `far`."""

    def __init__(self, directory: Path, tls: Tls, errors: list[str]) -> None:
        self.directory, self.tls, self.errors = directory, tls, errors
        self.drawn, self.outcomes = random.Random(SEED), Counter[str]()
        self.slowest_s = 0.0
        with self.run(NO_FAULT) as trial:
            self.expected = Result.of(trial.result(BOUND_S), trial.log)
            self.sizes = dict(trial.network.links[0].passed)
            assert len(trial.network.links) == 1 and not self.errors, "all went over one connection, without an error"

    def run(self, fault: Fault) -> Any:
        self.errors.clear()
        options: dict[str, Any] = {"rounds": 2, "tasks": TASKS, "deadline_s": DEADLINE_S, "stall_timeout_s": 1.0}
        options["on_quorum_failure"] = "retry"
        return federation(self.directory, CONTROL_ELEMENTS, tls=self.tls, first=fault, **options)

    def flip(self) -> None:
        """Flip a drawn bit, run the job, and judge its results."""
        direction = self.drawn.choice((UP, DOWN))
        self.flip_at(direction, self.drawn.randrange(self.sizes[direction]), 1 << self.drawn.randrange(8))

    def flip_at(self, direction: Direction, at: int, mask: int) -> None:
        """Flip bits of one byte, run the job, and judge its results."""
        where = f"byte {at} {direction.value}, mask {mask:#x}, seed {SEED}"
        began = time.monotonic()
        with self.run(Fault(FaultKind.FLIP, direction, at, mask)) as trial:
            try:
                outcome = trial.result(BOUND_S)
            except Exception as error:
                error.add_note(where)
                raise
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.judge(trial, Result.of(outcome, trial.log), [record.failed for record in outcome.history], where)

    def judge(self, trial: Trial, result: Result, failed: list[dict[str, Any]], where: str) -> None:
        assert result.model == self.expected.model, f"the model has changed: {where}"
        assert result.executions <= self.expected.executions, f"a client has executed another task: {where}"
        assert result.updates == self.expected.updates, f"a weight or a metric has changed: {where}"
        if any(failed):  # a validation is not asked for again: the history names the client that is missing
            assert all(set(clients) == {"far"} for tasks in failed for clients in tasks.values()), where
        else:
            assert result.metrics == self.expected.metrics, f"a metric has changed: {where}"
        link = trial.network.links[0]
        if not link.is_hit:
            self.outcomes["beyond the stream's end"] += 1
        elif any(failed):
            self.outcomes["refused, with a reason in the history"] += 1
        elif self.errors or len(trial.network.links) > 1:
            self.outcomes["detected and sent again"] += 1
        else:
            self.outcomes["without effect"] += 1

    def told(self, name: str) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"flips {name}, seed {SEED}: {self.outcomes.total()}: {counts}; slowest run {self.slowest_s:.1f} s"


def flip_pieces(directory: Path, rounds: int, elements: int, errors: list[str]) -> None:
    """Flip a byte of each download and each upload of a job whose bytes are nearly all pieces."""
    with federation(directory / "undisturbed", elements, rounds=rounds, tasks={"train": "weights"}) as trial:
        expected = Result.of(trial.result(), trial.log)
        _, download, upload, *_ = trial.network.links
        sizes = {"download": (DOWN, download.passed[DOWN]), "upload": (UP, upload.passed[UP])}
    drawn, flipped = random.Random(SEED), set[tuple[str, int]]()

    def flip(network: Network, transfer: str, _: int, executed: int) -> None:
        direction, size = sizes[transfer]
        if (transfer, executed) in flipped:  # it comes again in the next attempt
            return
        flipped.add((transfer, executed))
        network.inject(Fault(FaultKind.FLIP, direction, drawn.randrange(size), 1 << drawn.randrange(8)))

    options: dict[str, Any] = {"rounds": rounds, "on_quorum_failure": "retry", "deadline_s": DEADLINE_S}
    errors.clear()
    with federation(directory / "flipped", elements, flip, tasks={"train": "weights"}, **options) as trial:
        outcome = trial.result(60 + rounds * 5)
        assert Result.of(outcome, trial.log) == expected, "a flip has changed the model, an execution or the history"
        hits = sum(link.is_hit for link in trial.network.links)
        detected = sum("corrupt" in error or "expected" in error for error in errors)
    assert hits == len(flipped) == 2 * rounds
    assert detected >= 0.9 * hits
    again = sum(record.asked_again for record in outcome.history)
    print(f"flips in pieces, seed {SEED}: {hits}, {detected} errors, {again} attempts more, bits the same")


def test_a_flipped_byte_is_detected_or_without_effect(tmp_path: Path, errors: list[str]) -> None:
    flips = Flips(tmp_path, None, errors)
    for _ in range(2):
        flips.flip()


def test_a_flipped_byte_under_tls_ends_the_connection(tmp_path: Path, tls: Tls, errors: list[str]) -> None:
    flips = Flips(tmp_path, tls, errors)
    flips.flip()
    assert flips.outcomes["refused, with a reason in the history"] == 0


def test_a_flipped_byte_of_a_piece_costs_no_bit(tmp_path: Path, errors: list[str]) -> None:
    flip_pieces(tmp_path, 1, PIECE_ELEMENTS, errors)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["in plaintext", "over TLS"])
def test_two_hundred_flipped_bytes(tmp_path: Path, tls: Tls, errors: list[str], name: str) -> None:
    flips = Flips(tmp_path, tls if name == "over TLS" else None, errors)
    try:
        for _ in range(200):
            flips.flip()
    finally:
        print(flips.told(name))


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_two_hundred_flipped_bytes_of_pieces(tmp_path: Path, errors: list[str]) -> None:
    flip_pieces(tmp_path, 100, PIECE_ELEMENTS, errors)
