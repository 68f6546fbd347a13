"""One job of a standing federation, as its lead sees it."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flcore.errors import DownloadError, JobFailed, NoModel
from flcore.federation.messages import (
    AbortJob,
    DeleteJob,
    Done,
    FileList,
    JobDetails,
    JobFile,
    JobSummary,
    ShowJob,
    SiteProgress,
    WaitForJob,
)
from flcore.lead.file_download import DownloadedFile, download_file, list_files, main_file, target_paths
from flcore.lead.job_sheet import state_text
from flcore.lead.log_reader import follow_log, read_log
from flcore.lead.pack_upload import TransferObserver
from flcore.lead.server_calls import ServerCalls
from flcore.lead.status_reader import read_status, watch_status
from flcore.model.model_paths import INDEX_SUFFIX, MODEL_SUFFIX, PathLike
from flcore.text import printable

if TYPE_CHECKING:  # else commands that need neither models nor histories would import NumPy
    from flcore.model.stored_model import StoredModel
    from flcore.server.history import RoundRecord
    from flcore.status.job_status import JobStatus

OVER = ("done", "failed", "aborted")
"""The states that a job does not leave."""


class SubmittedJob:
    """A job of a standing federation. `FederationConnection.submit` and `FederationConnection.job` return it.

    Attributes:
        id: The job's id, `NAME-NUMBER`.

    Example:
        >>> job = federation.submit("digits")  # doctest: +SKIP
        >>> job.wait()  # doctest: +SKIP
        >>> job.history[-1].validate["accuracy"]  # doctest: +SKIP
        0.93
    """

    def __init__(self, calls: ServerCalls, id: str, summary: JobSummary | None = None) -> None:  # noqa: A002 - its name
        self._calls, self.id, self._seen = calls, id, summary

    def __repr__(self) -> str:
        """Return the id, and the state as it was when the server was last asked."""
        seen = self._seen
        state = "" if seen is None else f", {seen.state}, round {seen.round} of {seen.rounds}"
        return f"<SubmittedJob {self.id}{state}, at {self._calls.connection.address}>"

    @property
    def details(self) -> JobDetails:
        """All that the server knows of the job, as of now. A job with thousands of sites takes several calls."""
        details = page = self._show("")
        sites, answered, progress = dict(page.sites), dict(page.answered), dict(page.progress)
        while page.more_sites and page.sites:
            page = self._show(max(page.sites))
            sites |= page.sites
            answered |= page.answered
            progress |= page.progress
        more = {"sites": sites, "answered": answered, "progress": progress, "more_sites": page.more_sites}
        return details.model_copy(update=more)

    @property
    def summary(self) -> JobSummary:
        """The job in one line: state, reason, rounds and times, as of now."""
        return self._show("").summary

    @property
    def state(self) -> str:
        """The state as of now: `queued`, `running`, `interrupted`, `done`, `failed` or `aborted`."""
        return self.summary.state

    @property
    def progress(self) -> dict[str, SiteProgress]:
        """By client, how far its present task is."""
        return self.details.progress

    @property
    def status(self) -> "JobStatus":
        """Clients, refusals, rounds, bytes and the time left, as of now."""
        return cast("JobStatus", read_status(self._calls, self.id))

    def watch(self) -> "Iterator[JobStatus]":
        """Yield the status now, then each time that it has changed, at most once a second, until the job is over."""
        for status in watch_status(self._calls, self.id):
            yield cast("JobStatus", status)

    @property
    def history(self) -> "list[RoundRecord]":
        """The records of the finished rounds, read from the server. Empty before the first round is over."""
        from flcore.server.history_table import read_history
        from flcore.server.run_directory import HISTORY_FILE

        found = main_file(self.files(), HISTORY_FILE)
        if found is None:
            return []
        with tempfile.TemporaryDirectory(prefix="flcore-") as directory:
            download_file(self._calls, self.id, found, Path(directory) / HISTORY_FILE)
            return read_history(directory)

    def rounds(self) -> "Iterator[RoundRecord]":
        """Yield the record of each finished round once, in order, until the job is over.

        Rounds that are over already come first. It waits for a server that is away. A job that fails ends the rounds
        without an error: see `state`, or call `wait`.

        Raises:
            Refused: The job is another lead's, or was deleted.
            HistoryError: The history at the server is damaged.
        """
        from flcore.lead.round_reader import RoundReader

        reader = RoundReader(self._calls, self.id)
        summary = self._reach(None)
        yield from reader.read()
        while summary.state not in OVER:
            summary = self._wait_for_change(summary, None)
            yield from reader.read()

    def follow(self) -> Iterator[JobSummary]:
        """Yield the job as it is now, then each time that its state or its number of finished rounds has changed.

        Rounds that end in quick succession may come as one change; `rounds` has each of them. A reason that changes
        alone, as that of a job in the queue, is seen within 20 s. It waits for a server that is away.
        """
        summary = self._reach(None)
        yield summary
        while summary.state not in OVER:
            summary = self._wait_for_change(summary, None)
            yield summary

    def wait(self, timeout_s: float | None = None) -> JobSummary:
        """Wait until the job is over, also while the server is restarted.

        Args:
            timeout_s: The longest wait in seconds. Default: None, no limit.

        Returns:
            The job in one line.

        Raises:
            JobFailed: The job has failed or was aborted; the message says why.
            TimeoutError: The job is not over yet. It goes on.
            Refused: The job was deleted.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            summary = self._reach(deadline)
            while summary.state not in OVER:
                summary = self._wait_for_change(summary, deadline)
        except TimeoutError as error:
            away = "" if error.__cause__ is None else f"; its server is away: {error.__cause__}"
            state = "" if self._seen is None else f", but it is {self._seen.state}"
            raise TimeoutError(f"{self.id}: expected its end within {timeout_s:g} s{state}{away}; it goes on") from None
        require_done(summary)
        return summary

    def logs(self, client: str = "") -> str:
        """Return the job's log, as far as it is written.

        Args:
            client: The site whose log it is, as far as the site shares it. Default: the server's.
        """
        return "".join(read_log(self._calls, self.id, client))

    def follow_logs(self, client: str = "") -> Iterator[str]:
        """Yield the job's log in parts as it is written, until the job is over. It waits for a server that is away.

        Args:
            client: The site whose log it is, as far as the site shares it. Default: the server's.
        """
        return follow_log(self._calls, self.id, client)

    def abort(self) -> None:
        """End the job. Raises `Refused` if it is over, or is another lead's."""
        self._calls.call(AbortJob(id=self.id), Done)

    def delete(self) -> None:
        """Remove the job and its files from the server. Raises `Refused` if it is not over, or is another lead's."""
        self._calls.call(DeleteJob(id=self.id), Done)

    def files(self) -> list[JobFile]:
        """Return the job's files that can be downloaded: models, history and logs."""
        return list_files(self.id, lambda request: self._calls.call(request, FileList)[0])

    def download(
        self, out: PathLike, *, overwrite: bool = False, observe: TransferObserver = lambda *_: None
    ) -> list[DownloadedFile]:
        """Download models, history and logs, and write `report.txt`. An interrupted download is resumed by the next.

        Args:
            out: The directory, which is made if there is none.
            overwrite: Whether files there with another content are replaced. Default: False, raise `DownloadError`.
            observe: Receives the bytes that are done and the bytes in all. Default: nothing.

        Returns:
            The files: where each is, its SHA-256, and whether it is new, unchanged or replaced another one.

        Raises:
            DownloadError: A file came damaged, would leave the directory, or would replace another file.
            Refused: The server has no such job.
            ConnectionLost: The server has been away for a minute. What has come is kept.
        """
        from flcore.lead.job_report import REPORT_FILE, is_report_of, write_report
        from flcore.server.history_table import read_history
        from flcore.server.run_directory import HISTORY_FILE

        files, directory = self.files(), Path(out)
        directory.mkdir(parents=True, exist_ok=True)
        report = directory / REPORT_FILE
        if not (overwrite or is_report_of(report, self.id)):
            raise DownloadError(
                f"{report}: expected no file, or the report of {self.id}, got another one; choose another directory "
                f"(--out), or replace it (--overwrite)"
            )
        found = self._download(files, target_paths(files, directory), overwrite, observe)
        history = next((each.path.parent for each in found if each.path.name == HISTORY_FILE), None)
        write_report(report, self.details, [] if history is None else read_history(history))
        return found

    def model(self, directory: PathLike | None = None, *, best: bool = False) -> "StoredModel":
        """Download a model, and open it without reading its values.

        Args:
            directory: Where its files shall be. Default: None, a temporary place that goes with the returned model.
            best: The best model so far instead of the last one. Default: False.

        Returns:
            The model, as of `flcore.open_model`.

        Raises:
            NoModel: The job has published no such model: it waits, its first round is not over, or it has failed in it.
                A job that has failed later has the model of its last round.
            DownloadError: The model came damaged, or another file is in its place.
        """
        name = "best" if best else "model"
        if directory is not None:
            return self._open_model(name, Path(directory))
        with tempfile.TemporaryDirectory(prefix="flcore-") as temporary:
            return self._open_model(name, Path(temporary))  # the open files outlive their names

    def _open_model(self, name: str, directory: Path) -> "StoredModel":
        from flcore.model.checkpoint import open_model
        from flcore.model.shard_layout import read_index

        files = self.files()
        directory.mkdir(parents=True, exist_ok=True)
        if single := main_file(files, f"{name}{MODEL_SUFFIX}"):
            self._download([single], {single.name: directory / f"{name}{MODEL_SUFFIX}"})
            return open_model(directory / f"{name}{MODEL_SUFFIX}")
        index = main_file(files, f"{name}{INDEX_SUFFIX}")
        if index is None:
            raise NoModel(self._explain_no_model(name))
        target = directory / f"{name}{INDEX_SUFFIX}"
        self._download([index], {index.name: target})
        place = index.name.removesuffix(target.name)
        wanted = {place + shard: directory / shard for shard in set(read_index(target).values())}
        self._download([file for file in files if file.name in wanted], wanted)
        return open_model(target)

    def _explain_no_model(self, name: str) -> str:
        summary = self.summary
        reason = f" ({printable(summary.reason)})" if summary.reason else ""
        advice = f"see `flcore show {self.id}`" if summary.state in OVER else "wait for its next round"
        if name == "best" and any(main_file(self.files(), f"model{suffix}") for suffix in (MODEL_SUFFIX, INDEX_SUFFIX)):
            advice = "it has a last one; set server.best in job.toml for a best one"
        return (
            f"{self.id}: expected a model called {name}, got none, as the job has published none; it is "
            f"{state_text(summary)}{reason}; {advice}"
        )

    def _download(
        self,
        files: list[JobFile],
        targets: dict[str, Path],
        overwrite: bool = False,
        observe: TransferObserver = lambda *_: None,
    ) -> list[DownloadedFile]:
        total, before, found = sum(file.nbytes for file in files), 0, list[DownloadedFile]()
        for file in files:
            done = before
            downloaded = download_file(
                self._calls,
                self.id,
                file,
                targets[file.name],
                overwrite=overwrite,
                observe=lambda nbytes, _, done=done: observe(done + nbytes, total),  # type: ignore[misc]
            )
            before += file.nbytes
            found.append(downloaded)
        return found

    def _show(self, after: str) -> JobDetails:
        """Return what the server knows of the job, with the first of its sites after a name."""
        details, _ = self._calls.call(ShowJob(id=self.id, after=after), JobDetails)
        self._seen = details.summary
        return details

    def _reach(self, deadline: float | None) -> JobSummary:
        """Return the job as of now, from a server that may be away."""
        details, _ = self._calls.call_until_answered(ShowJob(id=self.id), JobDetails, deadline=deadline)
        self._seen = details.summary
        return self._seen

    def _wait_for_change(self, summary: JobSummary, deadline: float | None) -> JobSummary:
        seen = summary.state, summary.round, summary.reason
        self._seen, _ = self._calls.wait_for_news(
            WaitForJob(id=self.id, state=summary.state, round=summary.round),
            JobSummary,
            lambda found, _: (found.state, found.round, found.reason) != seen,
            deadline,
        )
        return self._seen


def require_done(summary: JobSummary) -> None:
    """Raise `JobFailed` for a job that has failed or was aborted."""
    if summary.state != "done":
        ended = "was aborted" if summary.state == "aborted" else "has failed"
        reason = printable(summary.reason) or "the server gives no reason"
        raise JobFailed(f"{summary.id} {ended}: {reason}; see `flcore show {summary.id}`")
