"""All exceptions that flcore raises.

FlcoreError
├── SpecError             arrays that do not form a valid model: a bad name, an unknown dtype, no tensors
├── JobError              a contract or code that cannot be run; names the place in job.toml
├── ContractMismatch      the contracts of client and server differ
├── NotInvited            the client's name is not in the job's list of clients
├── UpdateError           one client's update is refused; names the client, and the tensor if there is one
│   ├── TensorMismatch    a missing, extra, misshaped or mistyped tensor
│   ├── NonFinite         a NaN or an infinity
│   ├── OutOfBounds       a value, a weight or metrics beyond the job's bounds
│   ├── WeightError       a weight that is negative, not finite or out of range
│   ├── CorruptUpdate     a piece or staged file that is corrupt, truncated or not as announced
│   ├── StagingError      the server could not store the update; the client is not at fault
│   └── Untimely          an answer that is late, stale or unrequested
├── BudgetError           a memory budget or a limit of open files is too small; the message names a sufficient value
├── TaskFailed            a client's own code raised
├── HistoryError          a directory without a run's history, or a history that cannot be read
├── RunExists             the run directory is owned by another process, or holds an earlier run
├── JobFailed             the server reported that the job has failed
├── QuorumError           a round has fewer updates than its quorum
├── UpdatesLost           committed updates cannot be read back from disk
└── AggregationError      the result does not fit into the tensor's dtype

The packages below raise their own children of `FlcoreError`; see `flcore_kernels.errors` and `flcore_transport.errors`.

FlcoreError
├── KernelError           a buffer, a weight or a device that a kernel cannot use
├── TransportError        a connection, a message or a piece that is not as expected
└── UnknownDtypeName      a name that is no dtype's
"""

from flcore_layout import FlcoreError as FlcoreError


class SpecError(FlcoreError):
    """Arrays that do not form a valid model: a bad name, an unknown dtype, no tensors."""


class JobError(FlcoreError):
    """A contract or code that cannot be run."""


class HistoryError(FlcoreError):
    """A directory without a run's history, or a history that cannot be read."""


class RunExists(FlcoreError):
    """The run directory is owned by another process, or holds an earlier run."""


class ContractMismatch(FlcoreError):
    """The contracts of client and server differ."""

    kind = "contract"


class NotInvited(FlcoreError):
    """The client's name is not in the job's list of clients."""

    kind = "not-invited"


class UpdateError(FlcoreError):
    """One client's update is refused. `client` and `tensor` name the place; `tensor` is "" if there is no single one.

    `sender` is the word for `client` in the message: "checkpoint" if `client` is the path of a checkpoint.
    """

    kind = "update"

    def __init__(self, message: str, *, client: str = "", tensor: str = "", sender: str = "client") -> None:
        super().__init__(message)
        self.client, self.tensor, self.sender = client, tensor, sender

    def __str__(self) -> str:
        # Composed late: the checks are the same for updates and checkpoints, and their callers know which it was.
        whose, where = self.client and f"{self.sender} {self.client!r}", self.tensor and f"tensor {self.tensor!r}"
        return ": ".join(filter(None, [", ".join(filter(None, [whose, where])), super().__str__()]))


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
    """A weight that is negative, not finite or out of range."""

    kind = "weight"


class CorruptUpdate(UpdateError):
    """A piece or staged file that is corrupt, truncated or not as announced."""

    kind = "corrupt"


class StagingError(UpdateError):
    """The server could not store the update; the client is not at fault."""

    kind = "staging"


class Untimely(UpdateError):
    """An answer that is late, stale or unrequested."""

    kind = "untimely"


class BudgetError(FlcoreError):
    """A memory budget or a limit of open files is too small; the message names a sufficient value."""


class TaskFailed(FlcoreError):
    """A client's own code raised."""


class JobFailed(FlcoreError):
    """The server reported that the job has failed; the message says why."""


class QuorumError(FlcoreError):
    """A round has fewer updates than its quorum.

    `summary` counts them. `reasons` quotes clients, so it is shown at the server only."""

    def __init__(self, summary: str, *, reasons: str = "") -> None:
        super().__init__(f"{summary}: {reasons}" if reasons else summary)
        self.summary = summary


class UpdatesLost(FlcoreError):
    """Committed updates cannot be read back. `lost` maps each client to the reason; the other updates are kept."""

    def __init__(self, lost: dict[str, str]) -> None:
        super().__init__("; ".join(lost.values()))
        self.lost = lost


class AggregationError(FlcoreError):
    """The result does not fit into the tensor's dtype."""
