"""The requests of a standing federation, as strict JSON: from leads, and from the agents of its sites.

Each request is one call. Bytes of files travel beside it, in the call's body. A request that is refused raises
`Refused` at its sender.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from flcore.job.content import Content

JOB_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[1-9][0-9]{0,17}"
MAX_BODY_BYTES = 1 << 20
"""The most bytes of a file in one call."""

MAX_WAIT_S = 20.0
"""The longest that a call waits for something to happen. Its sender then asks again."""

JobId = Annotated[str, Field(pattern=f"^{JOB_ID_PATTERN}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Offset = Annotated[int, Field(ge=0, lt=1 << 62)]
Text = Annotated[str, Field(max_length=4_000)]
JobState = Literal["queued", "running", "done", "failed", "aborted"]
ToldState = Literal[JobState, "interrupted"]
"""The state that a caller is told. "interrupted": it has its slot, and goes on when the server is started again."""
MAX_STATES = 5
"""There are no more states."""
MAX_CHANGES = 64
Changes = Annotated[dict[str, JsonValue], Field(max_length=MAX_CHANGES)]
"""Values that replace keys of the contract, by dotted key: `{"server.rounds": 20}`."""


class PutPack(Content):
    """A part of a pack, in the body, from `offset` on. An empty body asks how many bytes the server has."""

    do: Literal["put-pack"] = "put-pack"
    digest: Digest
    nbytes: Annotated[int, Field(ge=1)]
    offset: Offset


class PackReceived(Content):
    """Reply to `PutPack`: how many bytes of the pack the server has."""

    received: int


class SubmitJob(Content):
    """Queue a job from a pack that the server has."""

    do: Literal["submit"] = "submit"
    digest: Digest
    changes: Changes = Field(default={})


class CloneJob(Content):
    """Queue a job from the pack of an earlier one. `changes` come on top of that job's."""

    do: Literal["clone"] = "clone"
    id: JobId
    changes: Changes = Field(default={})


class JobQueued(Content):
    """Reply to `SubmitJob` and `CloneJob`.

    Attributes:
        id: The job's id.
        warnings: What may keep the job in the queue for ever, such as a client that has never joined; one line each.
    """

    id: JobId
    warnings: Annotated[list[Text], Field(max_length=10)] = Field(default=[])


class ListJobs(Content):
    """The jobs of the federation, the newest first."""

    do: Literal["list"] = "list"
    # More would be more than a query of the database takes.
    states: list[JobState] = Field(default=[], max_length=MAX_STATES)
    limit: Annotated[int, Field(ge=1, le=1_000)] = 100


class JobSummary(Content):
    """One line about a job.

    Attributes:
        id: The job's id.
        name: The contract's name.
        state: The job's state.
        reason: Why it waits, has failed, was interrupted or aborted, or has stopped early; empty for others. One line.
            Other leads do not read what quotes a site.
        lead: The name of the lead who has submitted it.
        submitted: Moments in UTC, as ISO 8601; empty if not yet.
        started: As `submitted`.
        ended: As `submitted`.
        round: The number of rounds that are over.
        rounds: The number of rounds of the contract.
        metrics: The first metrics of the last round, in replies to the job's lead or to an admin; else empty. A list
            has none.
    """

    id: JobId
    name: str
    state: ToldState
    reason: Text = ""
    lead: str = ""
    submitted: str = ""
    started: str = ""
    ended: str = ""
    round: int = 0
    rounds: int = 0
    metrics: dict[str, float] = Field(default={})


class JobList(Content):
    """Reply to `ListJobs`."""

    jobs: list[JobSummary]


class ShowJob(Content):
    """All that the server knows of a job; of its sites those after the name `after`."""

    do: Literal["show"] = "show"
    id: JobId
    after: Annotated[str, Field(max_length=1_000)] = ""


class SiteProgress(Content):
    """How far a site's task is.

    Attributes:
        task: The task's name.
        round: The round's number.
        done: Units that are done.
        total: Units in all.
    """

    task: Annotated[str, Field(max_length=64)]
    round: Annotated[int, Field(ge=0, lt=1 << 62)]
    done: float
    total: float


class JobDetails(Content):
    """Reply to `ShowJob`.

    Attributes:
        summary: The job in one line.
        contract_fingerprint: The digest of the contract, with the changes.
        code_digest: The digest of the code.
        pack_digest: The SHA-256 of the pack; empty for a job of somebody else.
        signer: The name of the pack's signer; empty if it is not signed.
        changes: The keys of the contract that were replaced.
        quorum: The clients that a round needs.
        sites: By client, sorted, its part in a job that runs: "offered", "joined", "away", or "refused: " and the
            reason; in one that is over or interrupted: "took part" or "took no part". Then, if its last task has
            failed: "; failed last: " and the reason.
        more_sites: The number of sites after the last one of these. `ShowJob.after` asks for them.
        answered: By client, the number of rounds that it has answered.
        progress: By client, how far its present task is.
        metrics: The metrics of the last round, averaged over the sites: those of training and of validation.
    """

    summary: JobSummary
    contract_fingerprint: str
    code_digest: str
    pack_digest: str
    signer: str = ""
    changes: Changes = Field(default={})
    quorum: int = 1
    sites: dict[str, Text] = Field(default={})
    more_sites: int = 0
    answered: dict[str, int] = Field(default={})
    progress: dict[str, SiteProgress] = Field(default={})
    metrics: dict[str, float] = Field(default={})


class WaitForJob(Content):
    """Wait until a job's state is another one than `state`, or a round is over; `MAX_WAIT_S` at most."""

    do: Literal["wait"] = "wait"
    id: JobId
    state: ToldState
    round: int = 0


class ReadLog(Content):
    """A part of a job's log from `offset` on, in the reply's body.

    Attributes:
        id: The job's id.
        client: The site whose log it is; empty for the server's.
        offset: In bytes.
        wait: Whether to wait for more, `MAX_WAIT_S` at most, if there is nothing yet.
    """

    do: Literal["read-log"] = "read-log"
    id: JobId
    client: str = ""
    offset: Offset = 0
    wait: bool = False


class LogPart(Content):
    """Reply to `ReadLog`. `is_over`: nothing more will come."""

    next_offset: int
    is_over: bool


class GetStatus(Content):
    """The status of a job, or of the federation; the reply's body has it as JSON.

    Attributes:
        id: The job's id; None for the federation: its jobs and sites.
        version: The version that the sender has. The reply waits until there is another one, `MAX_WAIT_S` at most.
            Empty: it comes at once.
    """

    do: Literal["status"] = "status"
    id: JobId | None = None
    version: Annotated[str, Field(max_length=64)] = ""


class StatusVersion(Content):
    """Reply to `GetStatus`: the version of the status in the body, `flcore.status.JobStatus` or `FederationStatus`."""

    version: str


class AbortJob(Content):
    """End a job that waits or runs."""

    do: Literal["abort"] = "abort"
    id: JobId


class DeleteJob(Content):
    """Remove a job that is over, with its files."""

    do: Literal["delete"] = "delete"
    id: JobId


class Done(Content):
    """Reply to requests that return nothing."""


class ListFiles(Content):
    """The files of a job that can be downloaded: models, history, logs; those after the name `after`."""

    do: Literal["list-files"] = "list-files"
    id: JobId
    after: Annotated[str, Field(max_length=1_000)] = ""


class JobFile(Content):
    """One file of a job; `name` is relative, with slashes."""

    name: str
    nbytes: int


class FileList(Content):
    """Reply to `ListFiles`, sorted by name. `is_more`: there are files after the last one of these."""

    files: list[JobFile]
    is_more: bool = False


class ReadFile(Content):
    """A part of a job's file from `offset` on, in the reply's body: `MAX_BODY_BYTES`, less at the file's end."""

    do: Literal["read-file"] = "read-file"
    id: JobId
    name: str
    offset: Offset


class FilePart(Content):
    """Reply to `ReadFile`. The digest of the whole file is given with its last part, else it is empty."""

    nbytes: int
    sha256: str = ""


class SiteLog(Content):
    """Lines of a job's process at a site, in the body: those that the site shares.

    `client` is the site's name over plaintext. Over TLS the certificate names it.
    """

    do: Literal["site-log"] = "site-log"
    id: JobId
    client: str = ""


class SiteProgressReport(Content):
    """How far a task at a site is. `client` as in `SiteLog`."""

    do: Literal["site-progress"] = "site-progress"
    id: JobId
    client: str = ""
    progress: SiteProgress


class Ping(Content):
    """Measure the way to the server: its round trip, its rates and its clock. Clients, leads and admins may.

    The body is dropped. The reply has `nbytes` bytes in its body.
    """

    do: Literal["ping"] = "ping"
    nbytes: Annotated[int, Field(ge=0, le=MAX_BODY_BYTES)] = 0


class Pong(Content):
    """Reply to `Ping`. `time_s`: the server's clock, in seconds since the epoch."""

    time_s: float


LeadRequest = (
    PutPack
    | SubmitJob
    | CloneJob
    | ListJobs
    | ShowJob
    | WaitForJob
    | ReadLog
    | GetStatus
    | AbortJob
    | DeleteJob
    | ListFiles
    | ReadFile
)
"""What leads ask."""

JobRequest = LeadRequest | SiteLog | SiteProgressReport
"""What is about jobs."""

Request = Annotated[JobRequest | Ping, Field(discriminator="do")]


ACTIONS: Mapping[type[Content], str] = {
    PutPack: "flcore submit",
    SubmitJob: "flcore submit",
    CloneJob: "flcore clone",
    ListJobs: "flcore list",
    ShowJob: "flcore show",
    WaitForJob: "following a job",
    ReadLog: "flcore logs",
    GetStatus: "flcore status",
    AbortJob: "flcore abort",
    DeleteJob: "flcore delete",
    ListFiles: "flcore download",
    ReadFile: "flcore download",
    SiteLog: "sending the log of a job",
    SiteProgressReport: "reporting progress",
    Ping: "flcore doctor",
}
"""The command, or what a person does, that each request belongs to; for errors."""


class RequestContent(Content):
    """The content of a request's call."""

    request: Request
