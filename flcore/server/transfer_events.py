"""Events of one client's transfers: where it is in its task. Each comes once for a call, and not for a piece."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DownloadBegan:
    """A client's call has been sent its first piece of the model. A call that resumes a download begins one too."""

    task: str
    round: int
    client: str


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """A client has been sent the last piece of the model, and works on its task. `sent_bytes` are those of its call."""

    task: str
    round: int
    client: str
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class UploadQueued:
    """A client has announced its answer, and its call waits for a window and for memory. Its task is done."""

    task: str
    round: int
    client: str


@dataclass(frozen=True, slots=True)
class UploadBegan:
    """A client may send the pieces of its update. `received_bytes` came in earlier calls of the same upload."""

    task: str
    round: int
    client: str
    received_bytes: int


@dataclass(frozen=True, slots=True)
class UploadEnded:
    """All pieces of a client's update are in, and were checked. `received_bytes` are those of all its calls."""

    task: str
    round: int
    client: str
    received_bytes: int


TransferEvent = DownloadBegan | DownloadEnded | UploadQueued | UploadBegan | UploadEnded
"""A client's transfer has got further."""
