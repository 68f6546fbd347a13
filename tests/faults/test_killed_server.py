"""The same with real processes: a server that kills itself with SIGKILL at a point, and is started again by the same
command; its clients stay up. One job passes all points, one or more in each round.

With `FLCORE_KILL_EVERY=10`, it passes every tenth one.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.copied_runs import history_of, results, rounds
from tests.faults.kill_points import POINTS, KillPoint, points_of
from tests.faults.real_federation import RealFederation

CLIENTS = ["a", "b", "c"]
ELEMENTS = 1_200_000
"""Three pieces."""


def chain(plan: str, durability: str) -> list[KillPoint]:
    """Return one point of each kind, in the order in which one job reaches them.

    A job reaches one point after its end. Points before its first round come first.
    """
    kinds: dict[tuple[object, ...], KillPoint] = {}
    for point in points_of(plan, durability):
        kinds.setdefault((point.when, point.target, point.within, point.round > 0), point)
    ends = [point for point in kinds.values() if point.round and point.within == "add_facts"]
    after = [
        point for point in kinds.values() if point.target.endswith(("RunDirectory.finish", "run_directory:_remove"))
    ]
    points = [point for point in kinds.values() if point not in ends + after]
    return sorted(points, key=lambda point: point.round > 0) + ends


def compare(federation: RealFederation, undisturbed: Path) -> None:
    """The job has the same models and the same history as without a kill."""
    assert results(federation.out) == results(undisturbed)
    assert rounds(federation.history()) == rounds(history_of(undisturbed))


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("plan", "durability"), [("batch", "disk"), ("streaming", "disk"), ("batch", "memory"), ("streaming", "memory")]
)
def test_a_server_killed_at_each_point_of_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str, durability: str
) -> None:
    every = int(os.environ.get("FLCORE_KILL_EVERY", "10" if durability == "memory" else "1"))
    points = chain(plan, durability)[::-every][::-1]  # the last one is always among them
    count = sum(point.round > 0 for point in points)
    options = ("--plan", plan, "--durability", durability)
    seconds = []
    settings = 'best = "accuracy:max"\ncheckpoint_every = 1'
    with RealFederation(tmp_path, CLIENTS, count + 3, ELEMENTS, settings) as federation:
        undisturbed = federation.run_undisturbed()
        clients = [federation.start_client(name) for name in CLIENTS]
        began = time.monotonic()
        for number, point in enumerate(points):
            started = time.monotonic()
            round_ = min(len(federation.history()) + 1, count + 3) if point.round else 0
            server = federation.start_server(*options, point=(POINTS.index(point), round_, point.hit))
            assert server.wait(120) == -signal.SIGKILL, (
                f"{point.name} was not reached:\n{federation.log('server')[-3000:]}"
            )
            seconds.append(time.monotonic() - started)
            with capsys.disabled():
                print(f"\n{plan} {durability} {number + 1}/{len(points)} {seconds[-1]:.1f} s: {point.name}", end="")
        server = federation.start_server(*options)
        code = server.wait(180)
        log = federation.log("server")
        assert code == 0 or "holds a run already" in log, log[-3000:]
        assert [client.wait(30) for client in clients] == [0, 0, 0]
        compare(federation, undisturbed)
        asked, once = federation.executions(), federation.executions("undisturbed-executions")
        assert asked.keys() == once.keys()
        again = {key: times for key, times in asked.items() if times > 1}
        with capsys.disabled():
            print(
                f"\n{plan} {durability}: {len(points)} points in {time.monotonic() - began:.0f} s, the longest "
                f"{max(seconds):.1f} s; {len(again)} of {len(once)} answers computed again"
            )
        assert not again, "clients keep their updates until the round is published"
