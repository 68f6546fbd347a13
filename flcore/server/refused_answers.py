"""Refusals of answers, reported to the server's observer. The client is told the same; the server keeps the reason."""

from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING

from flcore_transport import Receipt, Refused

from flcore.server.events import AnswerRefused, Observer
from flcore.server.uploads import UploadCall

if TYPE_CHECKING:
    from flcore.server.round_registry import RoundRegistry


class RefusalReport:
    """A context that reports a refusal of one client's answer, and lets it pass. It may be entered again and again."""

    def __init__(self, observe: Observer, client: str, assignment_id: int, rounds: "RoundRegistry") -> None:
        self._observe, self._client, self._assignment_id, self._rounds = observe, client, assignment_id, rounds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Refused):
            task, round_number = self._rounds.task_of(self._assignment_id)
            # The cause names files of the server, which the client is not told.
            reason = str(error.__cause__ or error)
            self._observe(AnswerRefused(task, self._client, round_number, self._assignment_id, error.kind, reason))


class ReportedUpload:
    """An `UploadCall` whose refusals are reported, without any lock: the transport's `IncomingUpload`."""

    def __init__(self, call: UploadCall, report: RefusalReport) -> None:
        self._call, self._report = call, report

    @property
    def received(self) -> int:
        """How many pieces are in."""
        return self._call.received

    @property
    def expected(self) -> int:
        """How many pieces it has in all."""
        return self._call.expected

    def begin(self) -> "Future[None]":
        """The upload's turn has come; the future is done once there is memory for its pieces."""
        return self._call.begin()

    def accept(self, piece: bytes) -> "Future[None] | None":
        """Take the next piece, or raise `Refused` (see `UploadCall.accept`)."""
        with self._report:
            return self._call.accept(piece)

    def commit(self) -> Receipt:
        """Make the answer count, or raise `Refused`."""
        with self._report:
            return self._call.commit()

    def end(self) -> None:
        """The call has ended."""
        self._call.end()
