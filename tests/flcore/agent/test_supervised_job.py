"""What a job's code does to its own process costs the agent nothing: crashes, leaks, hangs, floods, forks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flcore.agent import supervised_job
from flcore.agent.job_log import LOG_FILES, MAX_LOG_BYTES
from flcore.agent.message_rate import BURST, PER_S
from flcore.agent.supervised_job import Ending
from tests.flcore.agent.supervised import is_alive, job_setup, supervised, wait_until_gone

NOTE = """
import ctypes, os, signal, sys, threading, time
def note(name, number):
    with open(name + ".new", "w") as file: file.write(str(number))
    os.rename(name + ".new", name)
"""
HANG = NOTE + "note('pid', os.getpid())\n"
# A mutex that its own thread locks twice: the interpreter's lock is held, and no signal interrupts the wait.
HANG_WITH_THE_LOCK = HANG + "mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock\n"
HANG_WITH_THE_LOCK += "lock(mutex)\nlock(mutex)\n"
HANG_WITHOUT_SIGTERM = HANG + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)\n"
FORKED = """
child = os.fork()
if child == 0:
    {}
    time.sleep(1000)
note('child', child)
"""


@pytest.fixture
def few_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_job, "MAX_RESTARTS", 1)
    monkeypatch.setattr(supervised_job, "FIRST_BACKOFF_S", 0.01)


CRASHES = [
    ("sys.exit(4)", "exit code 4"),
    ("os._exit(0)", "exit code 0"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),  # as of the kernel's when memory is short
    ("ctypes.string_at(0)", "SIGSEGV"),
    ("os.abort()", "SIGABRT"),
    ("raise RuntimeError('the data is gone')", "RuntimeError: the data is gone"),
]

CRASHING = """
while not os.path.exists("go"): time.sleep(0.01)
os.makedirs("starts", exist_ok=True)
start = len(os.listdir("starts"))
note(f"starts/{start}", start)
print("it begins")
"""


def test_a_job_that_crashes_is_started_again_and_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it crashes in another way."""
    waited: list[float] = []

    def wait(timeout_s: float) -> bool:
        waited.append(timeout_s)
        return False

    with supervised(tmp_path, f"{NOTE}{CRASHING}exec({[code for code, _ in CRASHES]}[start])\n") as job:
        monkeypatch.setattr(job.job._stopped, "wait", wait)
        (job.work / "go").touch()
        ending = job.ending()
    *restarted, (_, last) = CRASHES
    assert waited == [1, 2, 4, 8, 16], "the backoff doubles"
    assert ending.outcome == "crashed" and "has ended 6 times" in ending.text and last in ending.text
    log = job.log.read_text()
    assert log.count("it begins") == 6 and last in log
    for told, (_, how), restart, delay_s in zip(job.told.errors, restarted, range(1, 6), waited, strict=True):
        assert how in told and f"it is started again in {delay_s:.0f} s ({restart} of 5)" in told and how in log


def test_code_that_cannot_be_used_is_not_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, "def tarin(model, task): ...") as job:
        ending = job.ending()
    assert ending.outcome == "unusable" and "has no function 'train'" in ending.text and not job.told.errors


def test_a_leak_ends_at_the_limit(tmp_path: Path, few_restarts: None) -> None:
    code = NOTE + "blocks = []\nwhile True: blocks.append(bytearray(64 << 20)); print(len(blocks))\n"
    with supervised(tmp_path, code, memory_bytes=1 << 30) as job:
        ending = job.ending()
    log = job.log.read_text()
    assert ending.outcome == "crashed" and "MemoryError" in ending.text
    assert "MemoryError" in job.told.errors[0] and "Traceback" in log and "odd.py" in log
    assert max(int(line) for line in log.splitlines() if line.isdecimal()) < 16


@pytest.mark.parametrize("code", [HANG_WITH_THE_LOCK, HANG_WITHOUT_SIGTERM], ids=["with the lock", "without SIGTERM"])
def test_a_job_that_hangs_is_killed_with_its_children(code: str, tmp_path: Path) -> None:
    before, hang = code.split("note('pid'")
    with supervised(tmp_path, before + FORKED.format("pass") + "note('pid'" + hang) as job:
        pid, child = job.noted("pid"), job.noted("child")
        job.job.stop()
        assert job.ending(30) == Ending("stopped", "the agent has ended it")
        assert not is_alive(pid)
        wait_until_gone(child)


def test_children_do_not_outlive_a_process_that_ends(tmp_path: Path, few_restarts: None) -> None:
    with supervised(tmp_path, NOTE + FORKED.format("pass") + "os._exit(1)") as job:
        job.ending()
        wait_until_gone(job.noted("child"))


def test_a_child_that_has_left_the_group_holds_up_nothing(tmp_path: Path, few_restarts: None) -> None:
    has_left = "os.setsid(); note(f'left-{os.getpid()}', os.getpid())"
    waits_for_it = "while not os.path.exists(f'left-{child}'): time.sleep(0.01)\n"
    with supervised(tmp_path, NOTE + FORKED.format(has_left) + waits_for_it + "os._exit(1)") as job:
        assert job.ending().outcome == "crashed"
        children = [int(file.read_text()) for file in job.work.glob("left-*")]  # one of each start
        assert children and all(is_alive(child) for child in children)
        for child in children:
            os.kill(child, signal.SIGKILL)


@pytest.mark.long
def test_prints_without_end_are_bounded_in_size_and_rate(tmp_path: Path) -> None:
    code = HANG + "line = 'x' * 99\nwhile True: print(line)\n"
    with supervised(tmp_path, code) as job:
        job.noted("pid")
        before, start = time.process_time(), time.monotonic()
        time.sleep(5)
        took, passed = time.process_time() - before, time.monotonic() - start
        printed = job.told.printed_bytes
    sizes = [path.stat().st_size for path in tmp_path.glob("odd-1.log*")]
    assert len(sizes) == LOG_FILES and max(sizes) <= MAX_LOG_BYTES
    assert printed < (4 << 20) + (passed + 3) * (1 << 20)
    assert took < 0.3 * passed, "processor seconds of the agent"


def test_messages_that_are_none_and_without_end_do_no_harm(tmp_path: Path) -> None:
    code = HANG + (
        "channel = [n for n in range(3, 20) if os.path.exists(f'/proc/self/fd/{n}') "
        "and os.readlink(f'/proc/self/fd/{n}').startswith('pipe')]\n"
        "for n in channel:\n"
        '    try: os.write(n, b\'{"a": 1}\\n["progress", 1]\\n["progress", "t", true, 1, 1, 2]\\n["error"]\\n'
        '["progress", "t", 1, 1, 1, 1e999]\\n["ended", "never", ""]\\n\' + b\'[\' * 3000 + b\'\\n\' + '
        "b'y' * 50000 + b'\\n[\"progress\", \"t\", 1, 1, 1, 2]\\n')\n"
        "    except OSError: pass\n"
        "note('done', 1)\nwhile True: time.sleep(1)\n"
    )
    with supervised(tmp_path, code) as job:
        job.noted("done")
        job.wait_until(lambda: job.told.reports)  # the last one of all
        assert [(report.task, report.done) for report in job.told.reports] == [("t", 1.0)]
        assert job.job._thread.is_alive() and not job.told.errors


def test_messages_of_the_right_form_without_end_do_not_flood_the_output_of_the_agent(tmp_path: Path) -> None:
    code = HANG + (
        "for n in range(3, 20):\n"
        "    if os.path.exists(f'/proc/self/fd/{n}') and os.readlink(f'/proc/self/fd/{n}').startswith('pipe'):\n"
        "        try:\n"
        '            for _ in range(5_000): os.write(n, b\'["notice", "look"]\\n["progress", "t", 1, 1, 1, 2]\\n\')\n'
        "        except OSError: pass\n"
        "note('done', 1)\nwhile True: time.sleep(1)\n"
    )
    with supervised(tmp_path, code) as job:
        start = time.monotonic()
        job.noted("done")
        time.sleep(1.5)
        most = BURST + PER_S * (time.monotonic() - start) + 5
        assert 1 <= len(job.told.notices) <= 2 * most
        assert 1 <= len(job.told.reports) <= most and len(job.told.shown) <= most


AGENT = """
import sys, time
from flcore.agent.standby import StandbyProcesses
processes = StandbyProcesses(None, None)
group = processes.take()
group.write_line(sys.stdin.readline().encode())
processes.refill()
print(processes._warm.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("code", [HANG_WITH_THE_LOCK, HANG_WITHOUT_SIGTERM], ids=["with the lock", "without SIGTERM"])
def test_an_agent_that_is_killed_leaves_no_process(code: str, tmp_path: Path) -> None:
    before, hang = code.split("note('pid'")
    setup = job_setup(tmp_path, before + FORKED.format("pass") + "note('pid'" + hang)
    agent = subprocess.Popen([sys.executable, "-c", AGENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with agent:
        assert agent.stdin is not None and agent.stdout is not None
        agent.stdin.write(setup.model_dump_json() + "\n")
        agent.stdin.flush()
        warm = int(agent.stdout.readline())
        while not (tmp_path / "work/pid").exists():
            time.sleep(0.01)
        pids = [int((tmp_path / "work" / name).read_text()) for name in ("pid", "child")]
        agent.kill()
    for pid in (*pids, warm):
        wait_until_gone(pid)
