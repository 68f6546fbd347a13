"""A storm over a standing federation: its server, its agents and the processes of its jobs are killed at random.

Each is started again at once: the server and the agents by the test, the processes of jobs by their agents.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.faults.logged_processes import Process
from tests.faults.standing_federation import StandingFederation, children_of

MAX_SECONDS = 25 * 60


def storm(
    directory: Path,
    clients: str,
    jobs: int,
    rounds: int,
    kills: int,
    seed: int,
    longest_calm_s: float,
    report: Callable[[str], None],
) -> None:
    """Kill processes while jobs run; each job ends as it should, with the bits of an undisturbed run."""
    draw, began = random.Random(seed), time.monotonic()
    killed: Counter[str] = Counter()
    with StandingFederation(directory, clients, rounds, elements=100_000, train_s=0.3, slots=2) as federation:
        starts: dict[str, Callable[[], Process]] = {
            name: partial(federation.start_agent, name) for name in federation.clients
        }
        starts["server"] = federation.start_server
        running = {name: start() for name, start in starts.items()}
        log_before = 0  # the length of the server's log when the present server was started
        _wait_until_listening(federation, running["server"], log_before)
        ids = [federation.ask("submit", "jobs/killed", "--set", f"seed={number}")["id"] for number in range(jobs)]
        assert len(set(ids)) == jobs
        while killed.total() < kills:
            time.sleep(draw.uniform(0.0, longest_calm_s))
            federation.require_running(running)
            kind = draw.choice(("server", "agent", "job"))
            name = "server" if kind == "server" else draw.choice(federation.clients)
            if kind == "job":
                children = children_of(running[name].pid)
                if not children:
                    continue
                with suppress(ProcessLookupError):
                    os.kill(draw.choice(children), signal.SIGKILL)
            else:
                os.kill(running[name].pid, signal.SIGKILL)
                running[name].wait()
                if name == "server":
                    log_before = len(federation.log("server"))
                running[name] = starts[name]()
            killed[kind] += 1
            report(f"{killed.total()}/{kills} kills {dict(killed)}")
        _wait_until_listening(federation, running["server"], log_before)
        at_end = Counter(job["state"] for job in federation.ask("list")["jobs"])
        assert at_end["done"] < jobs, f"the jobs were done before the storm was over: {at_end}"
        calm = time.monotonic()
        while states := {job["id"]: job for job in federation.ask("list")["jobs"] if job["state"] != "done"}:
            assert all(job["state"] in ("queued", "running") for job in states.values()), states
            assert time.monotonic() - began < MAX_SECONDS, f"{states}\n{federation.log('server')[-3000:]}"
            federation.require_running(running)
            time.sleep(0.5)
        to_end_s = time.monotonic() - calm
        for number, job_id in enumerate(ids):
            assert federation.models_of(job_id) == federation.run_undisturbed(number), f"{job_id}: other bits"
        report(
            f"seed {seed}: {kills} kills {dict(killed)} over {jobs} jobs of {rounds} rounds, {len(clients)} sites, "
            f"in {calm - began:.0f} s, when the states were {dict(at_end)}; {to_end_s:.0f} s to the end"
        )


def _wait_until_listening(federation: StandingFederation, server: Process, log_before: int) -> None:
    while "listening on" not in federation.log("server")[log_before:]:
        assert server.poll() is None, federation.log("server")
        time.sleep(0.05)


@pytest.mark.serial
@pytest.mark.long
def test_three_kills_over_two_jobs_lose_nothing(tmp_path: Path) -> None:
    storm(tmp_path, "ab", jobs=2, rounds=12, kills=3, seed=21, longest_calm_s=1.0, report=lambda _: None)


@pytest.mark.stress
@pytest.mark.timeout(MAX_SECONDS + 300)
def test_a_hundred_kills_over_ten_jobs_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def report(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)

    seed = int(os.environ.get("FLCORE_SEED", "21"))
    storm(tmp_path, "abc", jobs=10, rounds=50, kills=100, seed=seed, longest_calm_s=4.0, report=report)
