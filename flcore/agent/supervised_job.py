"""A job's process under supervision: started, started again after a crash, watched, and ended."""

import json
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from flcore.agent.job_log import JobLog
from flcore.agent.job_output import OutputReader
from flcore.agent.job_process import OUTCOMES, JobSetup
from flcore.agent.message_rate import MessageRate
from flcore.agent.process_group import PATIENCE_S, ProcessGroup, describe_exit
from flcore.agent.standby import StandbyProcesses
from flcore.federation.messages import SiteProgress
from flcore.progress import TaskProgress
from flcore.text import printable

MAX_RESTARTS = 5
"""How often a job's process is started again, before the job is given up."""

FIRST_BACKOFF_S = 1.0
"""The delay before the first restart. It doubles with each."""

DRAIN_S = 1.0
"""Seconds to read the last output of a process that has ended: a child that has left its group may hold the pipes."""


@dataclass(frozen=True)
class Ending:
    """How a job has ended at this site.

    Attributes:
        outcome: "over": the server has said goodbye; "failed": with a failure; "refused": the server does not admit the
            client; "unusable": the job's code or settings cannot be used; "crashed": too often; "stopped": by `stop`.
        text: Why, in one line.
    """

    outcome: str
    text: str


class JobReports(Protocol):
    """Receives what the server may be told. Called from any thread, and returns at once."""

    def printed(self, output: bytes) -> None:
        """Take what the process has printed."""
        ...

    def error(self, text: str) -> None:
        """Take type and message of an exception, or how the process has ended."""
        ...

    def progress(self, progress: SiteProgress) -> None:
        """Take how far a task is."""
        ...


class SupervisedJob:
    """One job at this site. Its process may crash, hang, print or fork as it likes.

    Args:
        setup: What the process needs.
        processes: Starts processes.
        log: The job's log at the site.
        reports: Receives what the server may be told.
        notify: Receives lines for the site's owner.
        show_progress: Receives a line on the progress of a task.
        on_end: Called once with the ending, on the job's thread.
    """

    def __init__(
        self,
        setup: JobSetup,
        processes: StandbyProcesses,
        log: JobLog,
        reports: JobReports,
        notify: Callable[[str], None],
        show_progress: Callable[[str], None],
        on_end: Callable[[Ending], None],
    ) -> None:
        self._setup, self._processes, self._log = setup, processes, log
        self._reports, self._notify, self._show_progress, self._on_end = reports, notify, show_progress, on_end
        self._lock = threading.Lock()
        self._group: ProcessGroup | None = None
        self._stopped = threading.Event()
        self._last_word = "error", ""
        self._notice_rate, self._progress_rate = MessageRate(), MessageRate()
        self._thread = threading.Thread(target=self._supervise, name=f"job-{setup.id}", daemon=True)

    def start(self) -> None:
        """Start the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after `PATIENCE_S`. Returns at once."""
        self._stopped.set()
        with self._lock:
            group = self._group
        if group is not None:
            group.end()

    def join(self) -> None:
        """Wait until the process has ended and `on_end` was called."""
        self._thread.join()

    def _supervise(self) -> None:
        ending = Ending("stopped", "the agent has ended it")
        for restart in range(MAX_RESTARTS + 1):
            outcome, text = self._run_process()
            if self._stopped.is_set():
                break
            if outcome != "error":
                ending = Ending(outcome, text)
                break
            if restart == MAX_RESTARTS:
                ending = Ending("crashed", f"the job's process has ended {restart + 1} times: {text}")
                break
            delay_s = FIRST_BACKOFF_S * 2**restart
            self._tell(f"{text}; it is started again in {delay_s:.0f} s ({restart + 1} of {MAX_RESTARTS})")
            if self._stopped.wait(delay_s):
                break
        self._log.close()
        self._on_end(ending)

    def _run_process(self) -> tuple[str, str]:
        """Run the process until it has ended. Return its last word, or "error" and how it has ended without one."""
        self._last_word = "error", ""
        try:
            group = self._processes.take()
        except OSError as error:
            return "error", f"the job's process cannot be started: {error.strerror or error}"
        try:
            reader = OutputReader(group.printed, group.messages, self._printed, self._receive)
            reading = threading.Thread(target=reader.read, name=f"output-{self._setup.id}", daemon=True)
            reading.start()
        except (OSError, RuntimeError) as error:  # too many open files, or threads
            group.discard()
            return "error", f"the output of the job's process cannot be read: {error}"
        with self._lock:
            self._group = group
        if self._stopped.is_set():
            group.end()
        group.write_line(self._setup.model_dump_json().encode())
        try:
            self._processes.refill()
        except OSError as error:
            self._notify(f"{self._setup.id}: no process is kept warm: {error.strerror or error}")
        code = group.wait()
        with self._lock:
            self._group = None
        reading.join(DRAIN_S)
        reader.stop()
        reading.join()
        reader.close()
        group.close()
        outcome, text = self._last_word
        return outcome, text or f"the job's process ended unexpectedly: {describe_exit(code)}"

    def _tell(self, text: str) -> None:
        line = f"{self._setup.id}: {text}"
        self._log.write(f"[agent] {line}\n".encode())
        self._notify(line)
        self._reports.error(text)

    def _printed(self, output: bytes) -> None:
        self._log.write(output)
        self._reports.printed(output)

    def _receive(self, line: bytes) -> None:
        """Take a message of the process. The job's code runs in it, so the message may be anything."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        match message:
            case ["notice", str(text)]:
                self._receive_notice(text)
            case ["error", str(text)]:
                self._reports.error(printable(text, 2_000))
            case ["progress", str(task), int(number), int(rounds), int() | float() as done, int() | float() as total]:
                self._receive_progress(
                    TaskProgress(self._setup.client, printable(task, 64), number, rounds, done, total)
                )
            case ["ended", str(outcome), str(text)] if outcome in OUTCOMES:
                self._last_word = outcome, text
                self._end_late_exit()

    def _receive_notice(self, text: str) -> None:
        if self._notice_rate.admit():
            if left_out := self._notice_rate.take_left_out():
                self._notify(f"{self._setup.id}: {left_out:,} lines are left out here")
            self._notify(f"{self._setup.id}: {printable(text, 2_000)}")

    def _receive_progress(self, now: TaskProgress) -> None:
        if not self._progress_rate.admit():  # the newest one counts, and another follows in a second
            return
        if 0 <= now.done <= now.total < math.inf and now.total:
            with suppress(ValidationError, OverflowError):
                done, total = float(now.done), float(now.total)
                self._reports.progress(SiteProgress(task=now.task, round=now.round, done=done, total=total))
                self._show_progress(str(now).replace(f"{now.client}:", f"{self._setup.id}:", 1))

    def _end_late_exit(self) -> None:
        """End a process that has said its last word and does not exit, as one whose code has started a thread."""
        with self._lock:
            group = self._group
        if group is not None:
            killer = threading.Timer(PATIENCE_S, group.end)
            killer.daemon = True
            killer.start()
