"""Ctrl-C at any moment: it is raised, no buffer is used after its call, the next call gives the right bits.

A child process is interrupted some hundred times a second, once or twice within milliseconds, as people press Ctrl-C.
What it does between its calls ignores interrupts, so that none can hit the test's own code.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import flcore

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")

FEWEST_HITS = 20

CHILD = """
import itertools, os, queue, random, signal, sys, tempfile, threading, time
from pathlib import Path
import numpy as np
import flcore
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints

what, presses, seconds, FEWEST_HITS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
rng, size = random.Random(presses), 600_000
models = [{"w": np.random.default_rng(n).standard_normal(size).astype("f4")} for n in range(5)]
updates = [(model, n + 1.0) for n, model in enumerate(models)]
out = {"w": np.empty(size, "f4")}
spec = flcore.ModelSpec.of(models[0])

def staged(plan):
    aggregator = flcore.Aggregator(spec, plan=plan)
    for number, (model, weight) in enumerate(updates):
        with aggregator.update(client=str(number), weight=weight) as update:
            update.write_all(model)
    return aggregator.finish().arrays()["w"]

folder = Path(tempfile.mkdtemp())
if what == "files":
    for number, model in enumerate(models):
        flcore.save(model, folder / f"{number}.safetensors")

def files():
    paths = [folder / f"{number}.safetensors" for number in range(5)]
    weights = [weight for _, weight in updates]
    return aggregate_checkpoints(paths, folder / "out.safetensors", weights=weights).tensor("w")

calls = {
    "aggregate": [
        lambda: flcore.aggregate(updates)["w"],
        lambda: flcore.aggregate(iter(updates))["w"],
        lambda: flcore.aggregate(updates, out=out)["w"],
    ],
    "aggregator": [lambda: staged("batch"), lambda: staged("streaming")],
    "files": [files],
}[what]
expected = flcore.aggregate(updates)["w"].tobytes()

is_armed = False
def interrupted(*_):
    if is_armed:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupted)

orders, done = queue.SimpleQueue(), queue.SimpleQueue()
def press():
    while True:
        time.sleep(orders.get())
        for number in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            if number + 1 < presses:
                time.sleep(0.002 * rng.random())
        done.put(None)
threading.Thread(target=press, daemon=True).start()

usual = {}
for number, call in enumerate(calls):
    durations = []
    for _ in range(4):
        began = time.perf_counter()
        assert call().tobytes() == expected
        durations.append(time.perf_counter() - began)
    usual[number] = min(durations)
threads, hits, end = threading.active_count(), 0, time.monotonic() + seconds
for turn in itertools.count():
    number = turn % len(calls)
    try:
        try:
            is_armed = True
            orders.put(rng.random() * usual[number])
            calls[number]()
        finally:
            is_armed = False
    except KeyboardInterrupt:
        hits += 1
    done.get()
    if turn % 10 < len(calls):
        found = calls[number]()
        assert found.tobytes() == expected, "other bits after an interrupt"
    now = time.monotonic()
    if now > end and (hits >= FEWEST_HITS or now > end + 60):  # on a busy machine it takes longer
        break
deadline = time.monotonic() + 10
while threading.active_count() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
print(hits, turn + 1, max(0, threading.active_count() - threads))
"""


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("what", ["aggregate", "aggregator", "files"])
def test_interrupts_at_random_moments_do_no_harm(what: str, presses: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CHILD, what, str(presses), "2.5", str(FEWEST_HITS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"},  # arrays that are freed are gone at once
    )
    assert done.returncode == 0, done.stderr[-3000:]
    hits, turns, left_threads = map(int, done.stdout.split())
    assert FEWEST_HITS <= hits <= turns and left_threads == 0


@pytest.mark.serial
def test_the_command_ends_and_leaves_no_half_result(tmp_path: Path) -> None:
    for name in "ab":
        flcore.save({"w": np.ones(30_000_000, np.float32)}, tmp_path / f"{name}.safetensors")
    command = [sys.executable, "-X", "faulthandler", "-m", "flcore", "aggregate", "a.safetensors", "b.safetensors"]
    codes = set()
    for delay in np.linspace(0.6, 1.5, 5):
        with subprocess.Popen([*command, "--out", "out.safetensors"], cwd=tmp_path, stderr=subprocess.PIPE) as process:
            time.sleep(delay)
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.003)
            _, printed = process.communicate(timeout=60)
            codes.add(process.returncode)
        assert process.returncode in (0, 130, -signal.SIGINT), printed.decode()
        assert b"Fatal Python error" not in printed
        if (tmp_path / "out.safetensors").exists():  # it was done, and perhaps on its way out
            assert set(np.unique(flcore.load(tmp_path / "out.safetensors")["w"]).tolist()) == {1.0}
            (tmp_path / "out.safetensors").unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert codes != {0}
