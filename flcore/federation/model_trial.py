"""How much memory a job's model takes: found in a process of its own, as the lead's code may do anything in it.

The process gets a contract and a directory as one line of JSON. Its last message is `["needs", model, all]`, in bytes,
or `["error", text]`.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from flcore_transport import Refused

from flcore.aggregation.budget import MIN_BUDGET_BYTES, Budget
from flcore.aggregation.optimizer_state import state_bytes
from flcore.child_process import MessagesToParent, python_command
from flcore.errors import FlcoreError, JobError
from flcore.job.contract import Contract
from flcore.job.job import Job
from flcore.job.parsing import contract_from_json
from flcore.rules.kinds import step_of
from flcore.text import printable

TIMEOUT_S = 30.0
"""The longest that a model function may take at a submission, with the start of its process."""

MAX_ANSWER_BYTES = 1 << 16

_free_trials = threading.BoundedSemaphore(2)
"""Fewer than the transport has threads for requests: functions that never return must not hold up the others."""


class ModelNeeds(NamedTuple):
    """The bytes of a model, and of all that the plan "streaming" keeps in memory for it."""

    model_nbytes: int
    resident_bytes: int


def try_model(contract: Contract, directory: Path) -> ModelNeeds:
    """Make a job's initial model in a process of its own, and return what it needs with the plan "streaming".

    Raises:
        JobError: The model cannot be made, or not in `TIMEOUT_S`.
        Refused: Too many submissions are being tried.
    """
    if not _free_trials.acquire(blocking=False):
        raise Refused("busy", "the server is trying the models of other submissions; try again in a minute")
    try:
        answer = _run({"contract": contract.to_json(), "directory": str(directory)})
    finally:
        _free_trials.release()
    match answer:
        case ["needs", int(model_nbytes), int(resident_bytes)] if 0 <= model_nbytes <= resident_bytes:
            return ModelNeeds(model_nbytes, resident_bytes)
        case ["error", str(text)]:
            raise JobError(printable(text, 2_000))
        case _:
            raise JobError("server.model: the process that makes the model has ended without one; correct the function")


def _run(setup: dict[str, str]) -> Any:
    """Run the process. Returns its message; None if it has sent none that can be read."""
    process = subprocess.Popen(  # noqa: S603 - this Python, with a module of flcore
        python_command(__name__),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stdout is not None  # noqa: S101
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(setup).encode() + b"\n")
            process.stdin.flush()
        return _parse(_read_line(process.stdout.fileno()))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def _read_line(pipe: int) -> bytes:
    """Read up to the end of a line, with a bound in bytes and in time. A child of the process may hold the pipe."""
    received, until = b"", time.monotonic() + TIMEOUT_S
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while b"\n" not in received and len(received) <= MAX_ANSWER_BYTES:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise JobError(
                f"server.model: the function has not returned within {TIMEOUT_S:.0f} s; the server tries it at the "
                "submission; give a checkpoint, or ask its operator for the plan batch"
            )
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        received += part
    return received.partition(b"\n")[0]


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def main() -> int:
    """Make a model, as the process of a trial."""
    to_parent = MessagesToParent()
    setup = json.loads(sys.stdin.readline())
    try:
        contract = contract_from_json(setup["contract"], "the contract")
        job = Job(contract, Path(setup["directory"]))
        spec, budget = job.initial_model().spec, Budget(MIN_BUDGET_BYTES)
        state = state_bytes(spec, step_of(job.load_rule()))
        needed = budget.peak_bytes("streaming", spec, contract.server.accumulate, state)
        message = ["needs", spec.nbytes, needed - budget.nbytes - budget.overhead_bytes]
    except FlcoreError as error:
        message = ["error", str(error)[:2_000]]
    except BaseException as error:  # noqa: BLE001 - a lead's code may raise anything
        message = ["error", f"server.model: the function raised {type(error).__name__}: {error}"[:2_000]]
    to_parent.send(message)
    return 0
