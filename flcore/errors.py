"""Everything that flcore raises on purpose.

FlcoreError
├── SpecError             arrays that are no model: a bad name, an unknown dtype, no tensors at all
├── JobError              a contract or its code that cannot be run; names the place in job.toml
├── ContractMismatch      a client holds another contract than the server
├── NotInvited            a client's name is not one that may join
├── UpdateError           one client's update is refused; names the client and, where there is one, the tensor
│   ├── TensorMismatch    a missing, extra, misshaped or mistyped tensor
│   ├── NonFinite         a NaN or an infinity
│   ├── OutOfBounds       a value, a weight or metrics beyond the job's bounds
│   ├── WeightError       a weight that is no positive, finite number
│   ├── CorruptUpdate     a piece or a staged file that was corrupted, truncated or not what was announced
│   ├── StagingError      neither memory nor disk could keep it; the server's trouble, not the client's
│   └── Untimely          an answer that is late, stale, or was not asked for
├── BudgetError           a budget of memory, or a limit of open files, that is too small; says which would do
├── TaskFailed            a client's own code raised
├── HistoryError          a directory without a run's history, or a history that cannot be read
├── RunExists             a directory that another process owns, or that holds an earlier run
├── JobFailed             the server says that the job has failed
├── QuorumError           too few updates make no round
├── UpdatesLost           committed updates cannot be read back from the disk
└── AggregationError      the mean cannot be held by the tensor's dtype

The kernels and the transport have roots of their own: `flcore_kernels.KernelError`, `flcore_transport.TransportError`.
"""


class FlcoreError(Exception):
    """The root of everything that flcore raises on purpose."""


class SpecError(FlcoreError):
    """Arrays that are no model: a bad name, an unknown dtype, no tensors at all."""


class JobError(FlcoreError):
    """A contract or its code that cannot be run."""


class HistoryError(FlcoreError):
    """A directory without a run's history, or a history that cannot be read."""


class RunExists(FlcoreError):
    """A run's directory that another process owns, or that holds an earlier run."""


class ContractMismatch(FlcoreError):
    """A client holds another contract than the server."""

    kind = "contract"


class NotInvited(FlcoreError):
    """A client's name is not one that may join."""

    kind = "not-invited"


class UpdateError(FlcoreError):
    """One client's update is refused. `client` and `tensor` say whose and where ("" where no single tensor is).

    `sender` is the word for `client` in the message: "checkpoint" where it is the path of a model in files.
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
    """A weight that is no positive, finite number."""

    kind = "weight"


class CorruptUpdate(UpdateError):
    """A piece or a staged file that was corrupted, truncated or not what was announced."""

    kind = "corrupt"


class StagingError(UpdateError):
    """Neither memory nor disk could keep it; the server's trouble, not the client's."""

    kind = "staging"


class Untimely(UpdateError):
    """An answer that is late, stale, or was not asked for."""

    kind = "untimely"


class BudgetError(FlcoreError):
    """A budget of memory, or a limit of open files, that is too small; says which would do."""


class TaskFailed(FlcoreError):
    """A client's own code raised."""


class JobFailed(FlcoreError):
    """The server says that the job has failed, and why."""


class QuorumError(FlcoreError):
    """Too few updates make no round. `summary` says how many; `reasons` are the clients', and for the server alone."""

    def __init__(self, summary: str, *, reasons: str = "") -> None:
        super().__init__(f"{summary}: {reasons}" if reasons else summary)
        self.summary = summary


class UpdatesLost(FlcoreError):
    """Committed updates cannot be read back; `lost` says why, by client. The others are still there."""

    def __init__(self, lost: dict[str, str]) -> None:
        super().__init__("; ".join(lost.values()))
        self.lost = lost


class AggregationError(FlcoreError):
    """The mean cannot be held by the tensor's dtype."""
