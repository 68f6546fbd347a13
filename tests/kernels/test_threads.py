"""The pool: as many threads as this process may use, from any thread, after a fork, and with no effect on a bit."""

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_kernels import KernelError, Quantized, backend
from flcore_kernels.shared_call import SharedCall
from flcore_kernels.threads import THREADS_VARIABLE, Pool, available_cores, thread_count

from tests.kernels.cases import draw, finished, folded, mean, state_of

AFFINITY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
QUOTAS = [("150000 100000", 2), ("50000 100000", 1), ("100000 100000", 1), ("9900000 100000", 99), ("max 100000", None)]


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("text", "cores"), QUOTAS)
def test_the_quota_of_a_control_group_is_kept(text: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert available_cores(tmp_path) == min(64, cores or 64)


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 64), ("nonsense", 64)])
def test_the_quota_of_a_control_group_of_version_1_is_kept(quota: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "100000 0", "100000 -5"])
def test_a_control_group_that_says_nothing_has_no_quota(text: str, tmp_path: Path) -> None:
    assert available_cores(tmp_path / "absent") == 64
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores(tmp_path) == 64


def test_no_more_cores_are_used_than_the_process_may_run_on(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("99900000 100000")
    assert available_cores(tmp_path) == AFFINITY


def test_an_argument_goes_before_the_variable_and_that_before_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert thread_count(None) == available_cores()
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    assert thread_count(None) == 7
    assert thread_count(3) == 3
    monkeypatch.setenv(THREADS_VARIABLE, "")
    assert thread_count(None) == available_cores()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", " ", "²"])
def test_a_number_of_threads_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, text)
    with pytest.raises(KernelError, match="thread"):
        thread_count(None)
    with pytest.raises(KernelError, match="expected at least 1"):
        thread_count(0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_their_batches(threads: int) -> None:
    pool = Pool(threads)
    for batches in (0, 1, 2, 100):
        assert pool.run(lambda batch: batch * batch, batches) == [batch * batch for batch in range(batches)]


def test_batches_are_worked_on_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)
    assert Pool(2).run(lambda batch: both.wait() >= 0 and batch, 2) == [0, 1]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("failing", [0, 5, 49])
def test_an_exception_in_a_batch_comes_out_and_the_pool_goes_on(threads: int, failing: int) -> None:
    pool = Pool(threads)

    def work(batch: int) -> int:
        if batch == failing:
            raise ValueError(f"batch {batch}")
        time.sleep(0.0002)
        return batch

    for _ in range(3):
        with pytest.raises(ValueError, match=f"batch {failing}"):
            pool.run(work, 50)
    assert pool.run(lambda batch: batch, 50) == list(range(50))


def test_a_pool_may_be_used_from_its_own_batches() -> None:
    pool = Pool(3)
    assert pool.run(lambda batch: sum(pool.run(lambda inner: batch * inner, 10)), 10) == [45 * b for b in range(10)]


def test_many_threads_may_make_the_first_call_at_once() -> None:
    for _ in range(30):
        pool, start = Pool(4), threading.Barrier(8)
        found: list[Any] = []

        def call(pool: Pool = pool, start: threading.Barrier = start, found: list[Any] = found) -> None:
            start.wait()
            found.append(pool.run(lambda batch: batch, 20))

        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert found == [list(range(20))] * 8


def test_a_call_that_has_ended_takes_no_helper_and_holds_nothing() -> None:
    class Thing:
        def work(self, batch: int) -> int:
            return batch

    thing = Thing()
    held = weakref.ref(thing)
    call = SharedCall(thing.work, 3)
    call.share()
    call.close()
    assert call.results() == [0, 1, 2]
    del thing
    assert held() is None
    call.help()  # as a thread does that was busy with other calls


def test_closing_a_call_waits_for_those_that_help() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work(batch: int) -> int:
        began.set()
        assert may_end.wait(20)
        ended.set()
        return batch

    call = SharedCall(work, 1)
    helper = threading.Thread(target=call.help)
    helper.start()
    assert began.wait(20)
    threading.Timer(0.2, may_end.set).start()
    call.close()
    assert ended.is_set()
    assert call.results() == [0]
    helper.join()


@pytest.mark.parametrize("threads", [1, 2])
def test_work_aside_is_done_by_another_thread_than_the_main_one(threads: int) -> None:
    def failing() -> None:
        raise ValueError("aside")

    pool = Pool(threads)
    assert pool.run_aside(threading.current_thread) is not threading.main_thread()
    assert pool.run_aside(lambda: pool.run(lambda batch: 2 * batch, 9)) == [2 * batch for batch in range(9)]
    with pytest.raises(ValueError, match="aside"):
        pool.run_aside(failing)
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(pool.run_aside(threading.current_thread)))
    caller.start()
    caller.join()
    assert found == [caller]  # no signal reaches it: it does the work itself


FORK = """
import os, sys
import numpy as np
from flcore_kernels import backend
cpu = backend("cpu", threads=2)
operands = [np.full(300_000, value, np.float32) for value in (1.0, 2.0, 6.0)]
def mean():
    out = np.empty(300_000, np.float32)
    cpu.mean(operands, [1.0] * 3, out, "float32")
    return bool((out == 3.0).all())
assert mean()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if mean() and mean() else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert mean()
sys.exit(0 if codes == [0, 0, 0] else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_a_pool_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def verbs() -> dict[str, Callable[[], bytes]]:
    """Every verb, as a call that returns all bits of what it makes."""
    cpu, size = backend("cpu", threads=3), 150_001
    rng = np.random.default_rng(16)
    operands = [draw(rng, "float32", size).operand for _ in range(5)]
    halves = [draw(rng, "bfloat16", size).operand for _ in range(5)]
    quantized = draw(rng, "int8[256]", size).operand
    weights = [1.0, 0.1, 3.0, 7.0, 0.3]
    saved = folded(cpu, operands, weights, "float32", "exact", size)

    def merged() -> bytes:
        total = folded(cpu, halves, weights, "bfloat16", "exact", size)
        cpu.merge(total, saved)
        return state_of(cpu, total)

    def coded() -> bytes:
        out = Quantized(np.empty(size, np.int8), np.empty(-(-size // 256), np.float32))
        cpu.encode(operands[0], out, "int8[256]")
        half = np.empty(size, np.uint16)
        cpu.encode(operands[1], half, "bfloat16")
        return out.codes.tobytes() + out.scales.tobytes() + half.tobytes()

    def decoded() -> bytes:
        out = np.empty(size, np.float32)
        cpu.decode(quantized, out, "int8[256]")
        return out.tobytes()

    return {
        "fold": lambda: state_of(cpu, folded(cpu, operands, weights, "float32", "float32", size)),
        "merge": merged,
        "finish": lambda: finished(cpu, saved, "bfloat16").tobytes(),
        "mean": lambda: mean(cpu, halves, weights, "bfloat16", "exact", "float32", size).tobytes(),
        "inspect": lambda: repr(cpu.inspect(operands[2], "float32")).encode(),
        "encode": coded,
        "decode": decoded,
    }


def test_sixteen_threads_call_every_verb_at_once_and_get_the_same_bits() -> None:
    calls = verbs()
    expected = {name: call() for name, call in calls.items()}
    wrong: list[str] = []
    names = list(calls)

    def caller(number: int) -> None:
        for turn in range(2 * len(names)):
            name = names[(number + turn) % len(names)]
            try:
                if calls[name]() != expected[name]:
                    wrong.append(f"{name}: other bits")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                wrong.append(f"{name}: {error!r}")

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


ENDING = """
import os, sys, threading, time
from flcore_kernels.threads import Pool

begun = threading.Event()

def work(batch):
    begun.set()
    time.sleep(0.2)
    os.write(1, b"done ")

def forever():
    while True:
        Pool(2).run(work, 2)

for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.05)
begun.wait()
"""


def test_a_process_ends_when_no_other_thread_is_within_a_call() -> None:
    """The interpreter frees other threads' scratch memory at its end, while compiled code would still write to it."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["done"] * 6, "each thread's one call, both batches, and no call after that"


def test_a_forked_process_ends_though_a_thread_was_within_a_call() -> None:
    forking = ENDING + "child = os.fork()\nif child:\n    os.write(1, b'child %d' % os.waitpid(child, 0)[1])\n"
    done = subprocess.run([sys.executable, "-c", forking], capture_output=True, text=True, timeout=60, check=True)
    assert "child 0" in done.stdout
