"""All exceptions that flcore and its lower packages raise. Each message names the place and what to do, where known.

FlcoreError
├── SpecError             arrays that do not form a valid model: a bad name, an unknown dtype, no tensors
├── JobError              a contract, code or settings that cannot be used; names the key of job.toml, if there is one
├── PackError             a job that cannot be packed, or a pack that is corrupt or not as its manifest says
├── PartitionError        a data set that cannot be divided over clients as asked
├── ContractMismatch      the contracts, or the code, of client and server differ
├── NotInvited            the client's name is not in the job's list of clients
├── UpdateError           one client's update is refused; names the client, and the tensor if there is a single one
│   ├── TensorMismatch    a missing, extra, misshaped or mistyped tensor
│   ├── NonFinite         a NaN or an infinity
│   ├── OutOfBounds       a value, a weight or metrics beyond the job's bounds
│   ├── WeightError       a weight that is negative, not finite or out of range; or all weights are zero
│   ├── CorruptUpdate     a piece or staged file that is corrupt, truncated or not as announced
│   ├── StagingError      the server could not store or read back the update; the client is not at fault
│   └── Untimely          an answer that is late, stale or unrequested
├── BudgetError           a memory budget or a limit of open files is too small; the message names a sufficient value
├── TaskFailed            a client could not execute a task: its code raised, or returned what cannot be sent
├── CertificateError      a certificate, a key, a kit or a CA's directory that cannot be used
│   └── IdentityRefused       a peer's certificate that gives it no place in this federation; `reason` is for programs
├── ProfileError          no profile says which federation is meant, or the file of profiles is malformed
├── DownloadError         a job's file that came damaged, leaves its directory, or would replace another one
├── NoModel               a job of a standing federation has published no such model
├── HistoryError          a directory without a run's history, or a history that cannot be read
├── RecordError           the record of a run cannot be read or written
│   ├── DiskError             the disk does not take what a run writes; the message says where, why and what to do
│   └── WorkflowDiverged      the workflow makes other calls than before the restart
├── RunExists             the run directory is owned by another process, or holds an earlier run
├── JobFailed             the server reported that the job has failed
├── JobEnded              a job of a standing federation was ended from outside, or with its server
│   ├── JobAborted            by its lead or an admin
│   └── ServerStopped         its server stops; it goes on when the server is started again
├── QuorumError           too few clients are connected, or too few updates are in
├── UpdatesLost           committed updates cannot be read back from disk
├── AggregationError      updates cannot be combined: a result does not fit into its dtype, or a rule's code failed
├── MalformedMessage      a message of the other end that is invalid (`flcore.job.messages`)
├── MalformedStatus       a content that is no status of this version (`flcore.status.status_content`)
├── UnknownDtypeName      a name that is neither a dtype's nor an alias of one (`flcore_layout`)
├── KernelError           a call that a kernel refuses (`flcore_kernels`)
│   ├── UnknownDType          a dtype that no kernel folds
│   ├── BufferMismatch        a buffer of another size, dtype or place than expected
│   ├── WeightRange           a weight that is negative, not finite, or outside an accumulator's range
│   ├── NotFinite             a NaN or an infinity in an operand
│   ├── Overflow              a term, a sum or a result that is too large
│   ├── TooManyTerms          more terms than an exact total can count
│   ├── SpoiledTotal          a total that an earlier error left half changed
│   ├── BadState              bytes that are not a saved total, or were changed after it was saved
│   ├── OutOfDeviceMemory     a device, or its budget, with too little memory
│   ├── DeviceFailed          an error that a device reports
│   └── BackendUnavailable    a device that this machine or this installation does not have
└── TransportError        a failed connection, or an invalid message or piece (`flcore_transport`)
    ├── ProtocolMismatch      the other end speaks another version of the protocol
    ├── PieceError            a piece that is corrupt, truncated, out of order or not as announced
    ├── PayloadIncomplete     an upload that ended before its last piece
    ├── ConnectionLost        the connection broke; the call may be repeated
    │   └── Unreachable           nothing answers at the server's address
    ├── WrongServer           an untrusted certificate, or TLS at one end alone; a retry does not help
    ├── AddressUnavailable    the server's address cannot be bound
    ├── InsecureAddress       a plaintext connection to another machine that was not allowed
    └── Refused               the other end refused; `kind` is for programs, the message for people

Classes with a `kind` travel: a server refuses a client with it, and the client raises `Refused` of that kind. The
benchmarks have subclasses of `FlcoreError` of their own.
"""

from flcore_layout import FlcoreError as FlcoreError


class SpecError(FlcoreError):
    """Arrays that do not form a valid model: a bad name, an unknown dtype, no tensors."""


class JobError(FlcoreError):
    """A contract, code or settings that cannot be used."""


class PackError(FlcoreError):
    """A job cannot be packed, or a pack is corrupt or not as its manifest says."""

    kind = "bad-pack"


class PartitionError(FlcoreError):
    """A data set cannot be divided over clients as asked: invalid labels, or too few examples."""


class CertificateError(FlcoreError):
    """A certificate, a key, a kit or the directory of a certificate authority cannot be used."""


class IdentityRefused(CertificateError):
    """A peer's certificate gives it no place in this federation.

    Attributes:
        reason: One word for programs and the audit log: `malformed`, `expired`, `not-yet-valid`, `usage`, `federation`,
            `role`, `unmapped` or `revoked`.
    """

    kind = "identity"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProfileError(FlcoreError):
    """No profile says which federation is meant, or the file of profiles is malformed."""


class DownloadError(FlcoreError):
    """A file of a job came damaged, has a name that leaves its directory, or would replace another file."""


class NoModel(FlcoreError):
    """A job of a standing federation has published no such model; the message says how the job stands."""


class HistoryError(FlcoreError):
    """A directory without a run's history, or a history that cannot be read."""


class RecordError(FlcoreError):
    """The record of a run cannot be read or written."""


class DiskError(RecordError):
    """The disk does not take what a run writes, or does not give what it reads. The run can go on when it does."""


class WorkflowDiverged(RecordError):
    """A workflow that goes on after a restart makes another call than the one on record."""


class ModelGone(RecordError):
    """A model of a finished round, of which a restarted server has no elements any more."""


class RunDiffers(RecordError):
    """A directory holds an unfinished run of another job: its contract or its workflow differs."""


class RunExists(FlcoreError):
    """The run directory is owned by another process, or holds an earlier run."""


class ContractMismatch(FlcoreError):
    """The contracts of client and server differ, or their code where `same_code` is set."""

    kind = "contract"


class NotInvited(FlcoreError):
    """The client's name is not in the job's list of clients."""

    kind = "not-invited"


class UpdateError(FlcoreError):
    """One client's update is refused.

    Attributes:
        client: The client's name; "" if it is not known yet.
        tensor: The tensor's name; "" if there is no single one.
        sender: The word for `client` in the message: "checkpoint" if `client` is the path of a checkpoint.
    """

    kind = "update"

    def __init__(self, message: str, *, client: str = "", tensor: str = "", sender: str = "client") -> None:
        super().__init__(message)
        self.client, self.tensor, self.sender = client, tensor, sender

    def __str__(self) -> str:
        # Composed late: inner layers raise without the client, and outer layers fill it in.
        source, place = self.client and f"{self.sender} {self.client!r}", self.tensor and f"tensor {self.tensor!r}"
        return ": ".join(filter(None, [", ".join(filter(None, [source, place])), super().__str__()]))


class TensorMismatch(UpdateError):
    """A missing, extra, misshaped or mistyped tensor."""

    kind = "tensor-mismatch"


class NonFinite(UpdateError):
    """A NaN or an infinity."""

    kind = "non-finite"


class OutOfBounds(UpdateError):
    """A value, a weight or metrics beyond the job's bounds."""

    kind = "out-of-bounds"


class WeightError(UpdateError):
    """A weight that is negative, not finite or out of range; or all weights are zero."""

    kind = "weight"


class CorruptUpdate(UpdateError):
    """A piece or staged file that is corrupt, truncated or not as announced."""

    kind = "corrupt"


class StagingError(UpdateError):
    """The server could not store or read back the update; the client is not at fault."""

    kind = "staging"


class Untimely(UpdateError):
    """An answer that is late, stale or unrequested."""

    kind = "untimely"


class BudgetError(FlcoreError):
    """A memory budget or a limit of open files is too small; the message names a sufficient value."""


class TaskFailed(FlcoreError):
    """A client could not execute a task: its code raised, or returned what cannot be sent."""


class JobFailed(FlcoreError):
    """The server reported that the job has failed; the message says why."""


class JobEnded(FlcoreError):
    """A job of a standing federation was ended from outside, or with its server."""


class JobAborted(JobEnded):
    """A job was aborted by its lead or an admin; the message says by whom."""


class ServerStopped(JobEnded):
    """The server of a job stops. The job goes on when the server is started again."""


class QuorumError(FlcoreError):
    """Too few clients are connected, or a round has fewer updates than its quorum.

    Attributes:
        summary: The message without `reasons`.
        reasons: The reasons, which quote clients and stay at the server; may be empty.
    """

    def __init__(self, summary: str, *, reasons: str = "") -> None:
        super().__init__(f"{summary}: {reasons}" if reasons else summary)
        self.summary, self.reasons = summary, reasons


class UpdatesLost(FlcoreError):
    """Committed updates cannot be read back from disk. The other updates are kept.

    Attributes:
        lost: The reason by client.
    """

    def __init__(self, lost: dict[str, str]) -> None:
        super().__init__("; ".join(lost.values()))
        self.lost = lost


class AggregationError(FlcoreError):
    """Updates cannot be combined, as where a result does not fit into its dtype or a rule's code failed."""


class StepOverflow(AggregationError):
    """A step of a server optimizer leaves the range of the model's dtype or of its state's."""
