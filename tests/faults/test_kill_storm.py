"""A storm: the server and its clients are killed at random moments of one job, and each is started again at once."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.copied_runs import results
from tests.faults.real_federation import RealFederation

MAX_SECONDS = 25 * 60


Report = Callable[[str], None]
Start = Callable[[], "subprocess.Popen[bytes]"]
Processes = dict[str, "subprocess.Popen[bytes]"]


def storm(
    directory: Path,
    clients: str,
    kills: int,
    rounds: int,
    elements: int,
    seed: int,
    longest_calm_s: float,
    report: Report,
) -> None:
    """Kill processes of a job, whose clients are single letters; compare its models with the undisturbed ones."""
    names = list(clients)
    draw, began = random.Random(seed), time.monotonic()
    settings = 'best = "accuracy:max"\ncheckpoint_every = 1'
    with RealFederation(directory, names, rounds, elements, settings, train_s=0.1) as federation:
        undisturbed = federation.run_undisturbed()
        starts: dict[str, Start] = {name: partial(federation.start_client, name) for name in names}
        starts["server"] = federation.start_server
        running = {name: start() for name, start in starts.items()}
        done = at_server = 0
        while done < kills:
            # The job neither ends before the storm nor stands still in it: before every third kill, on average, a round
            # is completed. All others come when they come, as while the server or a client is still starting.
            last = min(len(federation.history()) + 1, rounds - 1)
            federation.allow_rounds(last)
            if draw.random() < 1 / 3:
                _wait_for_round(federation, last, running, began)
            time.sleep(draw.uniform(0.0, longest_calm_s))
            federation.require_running(running)
            victim = draw.choice(["server", draw.choice(names)])
            os.kill(running[victim].pid, signal.SIGKILL)
            running[victim].wait()
            running[victim] = starts[victim]()
            done, at_server = done + 1, at_server + (victim == "server")
            report(f"{done}/{kills} kills, {at_server} of the server; {len(federation.history())}/{rounds} rounds")
        federation.allow_rounds(rounds)
        calm = time.monotonic()
        assert running["server"].wait(MAX_SECONDS - (calm - began)) == 0, federation.log("server")[-3000:]
        assert [running[name].wait(60) for name in names] == [0] * len(names)
        history = federation.history()
        assert [record.round for record in history] == list(range(1, rounds + 1))
        assert all(sorted(record.updates) == names for record in history), "an update was lost"
        assert results(federation.out) == results(undisturbed), "an update was lost or counted twice"
        asked = federation.executions()
        again = sum(times - 1 for (_, task, _), times in asked.items() if task == "train")
        report(
            f"seed {seed}: {kills} kills, {at_server} of the server, in {time.monotonic() - began:.0f} s; "
            f"{rounds} rounds of {len(names)} clients, {again} trainings twice; "
            f"{time.monotonic() - calm:.0f} s from the last kill to the end"
        )


def _wait_for_round(federation: RealFederation, number: int, running: Processes, began: float) -> None:
    while len(federation.history()) < number:
        assert time.monotonic() - began < MAX_SECONDS, f"round {number} was not completed in {MAX_SECONDS} s"
        federation.require_running(running)
        time.sleep(0.1)


@pytest.mark.serial
@pytest.mark.long
def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    storm(tmp_path, "ab", kills=3, rounds=3, elements=1000, seed=20, longest_calm_s=1.5, report=lambda _: None)


@pytest.mark.stress
@pytest.mark.timeout(MAX_SECONDS + 300)
def test_two_hundred_kills_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    seed = int(os.environ.get("FLCORE_SEED", "20"))
    storm(tmp_path, "abc", kills=200, rounds=200, elements=1_200_000, seed=seed, longest_calm_s=5.0, report=report)
