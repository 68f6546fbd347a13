"""What an agent tells the server of its jobs: the lines that the site shares, and progress. One thread for all jobs."""

import threading
import time
from collections.abc import Callable
from typing import Literal

from flcore_transport import Ask, ConnectionLost, TransportError

from flcore.federation.messages import RequestContent, SiteLog, SiteProgress, SiteProgressReport

INTERVAL_S = 1.0
"""The shortest time between two rounds of reports: a job's log is one call a second at most."""

AWAY_INTERVAL_S = 4.0
"""The same while the server is away."""

ASK_TIMEOUT_S = 10.0

MAX_PENDING_BYTES = 256 << 10
"""Bytes of a job's log that wait to be sent. Beyond it, the oldest are left out."""


class SiteReports:
    """Sends the reports of all jobs. Methods may be called from any thread, and return at once.

    Args:
        ask: Sends a request to the server, within some seconds.
        client: The site's name.
        share_logs: "errors": type and message of exceptions; "all": all that is printed, too; "none".
    """

    def __init__(
        self, ask: Callable[[Ask, float], object], client: str, share_logs: Literal["errors", "all", "none"]
    ) -> None:
        self._ask, self._client, self._share_logs = ask, client, share_logs
        self._changed = threading.Condition()
        self._logs: dict[str, bytes] = {}
        self._left_out: dict[str, int] = {}
        self._in_a_line: set[str] = set()  # jobs that have printed the beginning of a line
        self._progress: dict[str, SiteProgress] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="reports", daemon=True)
        self._thread.start()

    def of_job(self, job_id: str) -> "JobReports":
        """Return what takes the reports of one job."""
        return JobReports(self, job_id)

    def printed(self, job_id: str, output: bytes) -> None:
        """Take what a job's process has printed."""
        if self._share_logs == "all":
            self._append(job_id, output)

    def error(self, job_id: str, text: str) -> None:
        """Take the type and message of an exception. It gets a line of its own."""
        if self._share_logs != "none":
            self._append(job_id, text.encode("utf-8", "replace") + b"\n", begins_line=True)

    def progress(self, job_id: str, progress: SiteProgress) -> None:
        """Take how far a job's task is. The newest one counts."""
        with self._changed:
            self._progress[job_id] = progress
            self._changed.notify()

    def close(self) -> None:
        """End the thread. What waits is not sent."""
        with self._changed:
            self._closed.set()
            self._changed.notify()

    def _append(self, job_id: str, output: bytes, *, begins_line: bool = False) -> None:
        with self._changed:
            if begins_line and job_id in self._in_a_line:
                output = b"\n" + output
            if output.endswith(b"\n"):
                self._in_a_line.discard(job_id)
            else:
                self._in_a_line.add(job_id)
            pending = self._logs.get(job_id, b"") + output
            if len(pending) > MAX_PENDING_BYTES:
                left_out = len(pending) - MAX_PENDING_BYTES // 2
                self._left_out[job_id] = self._left_out.get(job_id, 0) + left_out
                pending = pending[left_out:]
            self._logs[job_id] = pending
            self._changed.notify()

    def _send_all(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                while not (self._logs or self._progress or self._closed.is_set()):
                    self._changed.wait()
                progress, self._progress = self._progress, {}
                logs = {job_id: self._take_lines(job_id) for job_id in list(self._logs)}
            begun = time.monotonic()
            is_away = not all(self._send_progress(*item) for item in progress.items())
            for job_id, lines in logs.items():
                if lines and (is_away or not self._send_lines(job_id, lines)):
                    is_away = True
                    with self._changed:
                        self._logs[job_id] = (lines + self._logs.get(job_id, b""))[-MAX_PENDING_BYTES:]
            interval_s = AWAY_INTERVAL_S if is_away else INTERVAL_S
            self._closed.wait(max(0.0, begun + interval_s - time.monotonic()))

    def _take_lines(self, job_id: str) -> bytes:
        """Take what waits of a job's log, with a note of what was left out."""
        pending = self._logs.pop(job_id)
        left_out = self._left_out.pop(job_id, 0)
        return (f"[agent] {left_out:,} bytes are left out here\n".encode() if left_out else b"") + pending

    def _send_progress(self, job_id: str, progress: SiteProgress) -> bool:
        request = SiteProgressReport(id=job_id, progress=progress, client=self._client)
        return self._send(Ask(RequestContent(request=request).to_bytes()))

    def _send_lines(self, job_id: str, lines: bytes) -> bool:
        request = SiteLog(id=job_id, client=self._client)
        return self._send(Ask(RequestContent(request=request).to_bytes(), lines))

    def _send(self, ask: Ask) -> bool:
        """Send a request. Return False if the server is away. A refused one, as of a job that is over, is dropped."""
        try:
            self._ask(ask, ASK_TIMEOUT_S)
        except ConnectionLost:
            return False
        except TransportError:
            pass
        return True


class JobReports:
    """Takes the reports of one job."""

    def __init__(self, reports: SiteReports, job_id: str) -> None:
        self._reports, self._job_id = reports, job_id

    def printed(self, output: bytes) -> None:
        """Take what the process has printed."""
        self._reports.printed(self._job_id, output)

    def error(self, text: str) -> None:
        """Take the type and message of an exception, or how the process has ended."""
        self._reports.error(self._job_id, text)

    def progress(self, progress: SiteProgress) -> None:
        """Take how far a task is."""
        self._reports.progress(self._job_id, progress)
