"""Jobs as leads see them: from the database, and from the runner while a job runs."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from flcore.federation.job_database import JobDatabase
from flcore.federation.job_offers import MAX_CHANGES_BYTES
from flcore.federation.job_rows import JobLine, JobRow
from flcore.federation.job_runner import JobRunner
from flcore.federation.messages import (
    MAX_CHANGES,
    FileList,
    JobDetails,
    JobFile,
    JobList,
    JobSummary,
    ListJobs,
    SiteProgress,
)
from flcore.federation.roles import Caller
from flcore.federation.scheduler import Scheduler
from flcore.federation.site_parts import part_text, with_failure
from flcore.federation.told_state import may_read, told_state
from flcore.job.contract import Contract
from flcore.job.messages import Content
from flcore.job.parsing import contract_from_json
from flcore.text import printable

MAX_LIST_BYTES = 240 << 10
"""Less than a reply takes."""

MAX_REASON_CHARACTERS = 300
"""The longest reason in a list."""

MAX_SITES_BYTES, MAX_PART_BYTES = 56 << 10, 40 << 10
"""The share in a reply of 256 KiB that the states of sites have, and that progress and metrics have each. The rounds
that sites have answered take less than the states. Together with `MAX_CHANGES_BYTES` they leave space for the rest."""

MAX_NEWS_BYTES = 4 << 10
"""The share of the metrics in a summary."""

MAX_PARTS = 10_000

ValueT = TypeVar("ValueT")


class JobViews:
    """Summaries and details of jobs."""

    def __init__(self, database: JobDatabase, scheduler: Scheduler) -> None:
        self._database, self._scheduler = database, scheduler

    def list(self, caller: Caller, request: ListJobs) -> JobList:
        """Return the newest jobs: as many as are asked for, and as fit into a reply."""
        jobs: list[JobSummary] = []
        nbytes = 0
        for row in self._database.lines(request.states, request.limit):
            summary = self.summary(row, MAX_REASON_CHARACTERS, is_own=may_read(caller, row))
            nbytes += len(summary.to_bytes()) + 1
            if nbytes > MAX_LIST_BYTES:
                break
            jobs.append(summary)
        return JobList(jobs=jobs)

    @staticmethod
    def files(files: Sequence[JobFile], after: str) -> FileList:
        """Return the files after a name: as many as fit into a reply."""
        left = sorted((file for file in files if file.name > after), key=lambda file: file.name)
        nbytes = 0
        for index, file in enumerate(left):
            nbytes += len(file.to_bytes()) + 1
            if nbytes > MAX_LIST_BYTES:
                return FileList(files=left[:index], is_more=True)
        return FileList(files=left)

    def summary(self, row: JobRow | JobLine, max_reason: int = 4_000, *, is_own: bool) -> JobSummary:
        """Return a job in one line."""
        runner = self._scheduler.runner(row.number)
        state, reason = told_state(row, self._scheduler.reason(row), is_own=is_own)
        return JobSummary(
            id=row.id,
            name=row.name,
            state=state,
            reason=printable(reason, max_reason),
            lead=row.lead,
            submitted=row.submitted,
            started=row.started,
            ended=row.ended,
            round=row.round if runner is None else runner.result[0],
            rounds=row.rounds,
        )

    def news(self, row: JobRow, *, is_own: bool) -> JobSummary:
        """Return a job in one line, with metrics of its last round unless it is somebody else's."""
        runner = self._scheduler.runner(row.number)
        metrics = row.metrics if runner is None else runner.result[1]
        shown = _fitting(metrics, MAX_NEWS_BYTES) if is_own else {}
        return self.summary(row, is_own=is_own).model_copy(update={"metrics": shown})

    def details(self, row: JobRow, after: str = "", *, is_own: bool) -> JobDetails:
        """Return all that is known of a job, with the sites after a name that fit; of somebody else's, its identity."""
        contract = contract_from_json(row.contract, row.id)
        runner = self._scheduler.runner(row.number) if is_own else None
        metrics = row.metrics if runner is None else runner.result[1]
        page = self._sites(row, contract, runner, after) if is_own else _SitePage({}, 0, {}, {})
        return JobDetails(
            summary=self.news(row, is_own=is_own),
            contract_fingerprint=row.contract_fingerprint,
            code_digest=row.code_digest,
            pack_digest=row.pack_digest if is_own else "",
            signer=row.signer,
            changes=_fitting(row.changes, MAX_CHANGES_BYTES, MAX_CHANGES) if is_own else {},
            quorum=contract.server.quorum,
            sites=page.sites,
            more_sites=page.more,
            answered=page.answered,
            progress=page.progress,
            metrics=_fitting(metrics) if is_own else {},
        )

    def _sites(self, row: JobRow, contract: Contract, runner: JobRunner | None, after: str) -> "_SitePage":
        """Return the sites after a name, with what each does or has done, as many as fit into a reply."""
        refused = self._database.refusals(row.number)
        parts = self._database.parts(row.number) if runner is None else runner.parts
        if runner is not None:
            sites = runner.sites(self._scheduler.lobby.offered_to(row.number), refused)
            sites = {client: with_failure(text, parts.get(client)) for client, text in sites.items()}
        elif row.is_over or told_state(row, row.reason, is_own=True).state == "interrupted":
            names = {*parts, *refused, *(contract.clients if isinstance(contract.clients, tuple) else ())}
            sites = {client: part_text(parts.get(client), refused.get(client, "")) for client in sorted(names)}
        else:
            sites = {client: f"refused: {reason}" for client, reason in sorted(refused.items())}
        # All names rather than all words: with many sites each reason is cut.
        longest_name = max((len(client) for client in sites), default=0)
        longest = max(24, min(2_000, MAX_SITES_BYTES // max(1, len(sites)) - longest_name - 8))
        progress = {} if runner is None else runner.progress
        left = [client for client in sorted(sites) if client > after]
        shown = _fitting({client: printable(sites[client], longest) for client in left}, MAX_SITES_BYTES)
        told = _fitting({client: progress[client] for client in shown if client in progress})
        if untold := [client for client in shown if client in progress and client not in told]:
            shown = {client: text for client, text in shown.items() if client < untold[0]}
        answered = {client: parts[client].rounds for client in shown if client in parts}
        return _SitePage(shown, len(left) - len(shown), answered, told)


class _SitePage(NamedTuple):
    """Some sites of a job, and the number of those after them."""

    sites: dict[str, str]
    more: int
    answered: dict[str, int]
    progress: dict[str, SiteProgress]


def _fitting(
    parts: Mapping[str, ValueT], max_bytes: int = MAX_PART_BYTES, max_count: int = MAX_PARTS
) -> dict[str, ValueT]:
    """Return the first entries that fit into their share of a reply."""
    found: dict[str, ValueT] = {}
    nbytes = 0
    for name, value in parts.items():
        encoded = value.to_bytes() if isinstance(value, Content) else json.dumps(value).encode()
        nbytes += len(json.dumps(name)) + len(encoded) + 4
        if nbytes > max_bytes or len(found) >= max_count:
            break
        found[name] = value
    return found
