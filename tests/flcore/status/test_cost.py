"""What the board costs a round: its events, times what one costs, are at most 1 % of the round's time.

The round is the least favourable real one: clients in threads of one process that train in no time, so that the round
is transfers and sums alone. The cost of an event is processor time, which a busy machine does not lengthen; the round's
time it does.
"""

import time
from pathlib import Path

import pytest

import flcore
from flcore.job.parsing import parse_contract
from flcore.server.events import Event
from flcore.status import StatusBoard

ROUNDS, CLIENTS, REPETITIONS = 3, 4, 20
MODEL_BYTES = 16 << 20

CODE = f"""
import numpy as np
from flcore import Update

def initial_model(seed):
    return {{"w": np.zeros({MODEL_BYTES // 4}, np.float32)}}

def train(model, task):
    return Update({{"w": np.ones({MODEL_BYTES // 4}, np.float32)}}, weight=1.0, metrics={{"loss": 1.0}})
"""


def run_quick(directory: Path) -> tuple[list[Event], flcore.Outcome]:
    """Return the events of a run, and its outcome."""
    (directory / "code.py").write_text(CODE)
    contract = parse_contract(
        {
            "name": "quick",
            "clients": CLIENTS,
            "server": {"model": "code.py:initial_model", "rounds": ROUNDS},
            "client": {"executor": "code.py"},
            "tasks": {"train": {"returns": "weights"}},
        },
        "the test's contract",
    )
    events: list[Event] = []
    outcome = flcore.run(flcore.Job(contract, directory), workers=0, observe=events.append)
    return events, outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], flcore.Outcome]:
    return run_quick(tmp_path_factory.mktemp("job"))


def seconds_to_fold(events: list[Event]) -> float:
    """Return the least processor time of folding these events."""
    least = float("inf")
    for _ in range(REPETITIONS):
        board = StatusBoard("quick", ROUNDS, [f"client-{n}" for n in range(1, CLIENTS + 1)])
        began = time.thread_time()
        for event in events:
            board.observe(event)
        least = min(least, time.thread_time() - began)
    return least


def test_the_board_costs_at_most_one_percent_of_a_round(finished: tuple[list[Event], flcore.Outcome]) -> None:
    events, (history, _) = finished
    rounds_s = sum(record.seconds["round"] for record in history)
    assert sum(record.bytes_received for record in history) > ROUNDS * CLIENTS * MODEL_BYTES, "all of it is measured"
    assert seconds_to_fold(events) <= 0.01 * rounds_s


def test_the_number_of_events_grows_with_calls_and_pieces_alone(finished: tuple[list[Event], flcore.Outcome]) -> None:
    """Not with elements, and not with time."""
    events, _ = finished
    pieces = -(-MODEL_BYTES // (2 << 20)) * 2
    assert len(events) <= ROUNDS * CLIENTS * (pieces + 10) + 20


def test_a_look_at_a_thousand_clients_takes_the_lock_for_one_at_a_time() -> None:
    """The longest that an event waits does not grow with the clients."""
    board = StatusBoard("large", 1, [f"c{number}" for number in range(1_000)])
    lock, taken = board._changed, 0

    class Counted:
        def __enter__(self) -> None:
            nonlocal taken
            taken += 1
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    board._changed = Counted()  # type: ignore[assignment]
    assert len(board.snapshot().clients) == 1_000 and taken == 1_001
