"""Refusals of answers, reported to an observer, which also receives their cause. The client receives no cause."""

from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING

from flcore_transport import Receipt, Refused

from flcore.server.events import AnswerRefused, Observer
from flcore.server.uploads import UploadCall

if TYPE_CHECKING:
    from flcore.server.federation_state import FederationState


class RefusalReport:
    """A reusable context that reports a `Refused` of one client's answer to an observer, and lets it propagate."""

    def __init__(self, observe: Observer, client: str, assignment_id: int, state: "FederationState") -> None:
        self._observe, self._client, self._assignment_id, self._state = observe, client, assignment_id, state

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Refused):
            task, round_number = self._state.task_of(self._assignment_id)
            # The cause names files of the server, which the client is not told.
            reason = str(error.__cause__ or error)
            self._observe(AnswerRefused(task, self._client, round_number, self._assignment_id, error.kind, reason))


class ReportedUpload:
    """An `UploadCall` whose refusals are reported, without any lock: the transport's `IncomingUpload`.

    `on_committed` is called before the receipt is sent.
    """

    def __init__(self, call: UploadCall, report: RefusalReport, on_committed: Callable[[], None]) -> None:
        self._call, self._report, self._on_committed = call, report, on_committed

    @property
    def received(self) -> int:
        """The number of pieces that were received, in all calls."""
        return self._call.received

    @property
    def expected(self) -> int:
        """The number of all pieces of the upload."""
        return self._call.expected

    def begin(self) -> "Future[None]":
        """Request memory, as the call has a window now (see `UploadCall.begin`)."""
        return self._call.begin()

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Store the next piece, or raise `Refused` (see `UploadCall.accept`)."""
        with self._report:
            return self._call.accept(piece)

    def commit(self) -> Receipt:
        """Commit the answer and return the receipt, or raise `Refused`."""
        with self._report:
            receipt = self._call.commit()
        self._on_committed()
        return receipt

    def end(self) -> None:
        """The call has ended."""
        self._call.end()
