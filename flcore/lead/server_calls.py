"""A lead's requests as calls: encoded, sent, repeated while the server is away, and parsed."""

import difflib
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Protocol, TypeVar

from flcore_transport import Ask, ConnectionLost, Refused, Reply

from flcore.client.outage import Outage
from flcore.federation.messages import MAX_WAIT_S, JobList, LeadRequest, ListJobs, ReadLog, RequestContent, WaitForJob
from flcore.job.content import Content, MalformedMessage, parse_content
from flcore.text import printable

CALL_TIMEOUT_S = 30.0
"""Seconds for a call that does not wait for anything at the server."""

LONG_POLL_TIMEOUT_S = MAX_WAIT_S + CALL_TIMEOUT_S
"""Seconds for a call that waits for something to happen."""

LEAST_POLL_S = 1.0
"""A server that closes, or that has too many waiting calls, answers at once. It is asked again after this time."""

TRANSFER_TIMEOUT_S = 120.0
"""Seconds for a call with a part of a file: 1 MiB at 70 kbit/s."""

TRANSFER_GIVE_UP_S = 60.0
"""Seconds without the server after which an upload or a download ends. The next one resumes it."""

NEAREST_AMONG = 1_000
"""The newest jobs, among which similar ids are looked for."""

NO_SUCH_ID, NOT_ALLOWED = "no-such-id", "not-allowed"
"""Kinds of refusals to which a lead's side adds advice."""

TRY_AGAIN = ("too-many-asks", "no-reply")
"""Kinds of refusals of a server that is busy, or of a lead with too many calls at a time."""

Notify = Callable[[str], None]
"""Receives one line that is news for the lead, such as that the server is away."""

ReplyT = TypeVar("ReplyT", bound=Content)


class Connection(Protocol):
    """The transport below: a `GrpcConnection`, or a fake in tests."""

    address: str

    def ask(self, ask: Ask, timeout_s: float | None = None) -> Reply:
        """Send a request, and return its reply. Raises `Refused` or `ConnectionLost`."""
        ...

    def close(self) -> None:
        """End all calls."""
        ...


class ServerCalls:
    """The calls of one lead to one server.

    Args:
        connection: The connection.
        caller: The lead's identity in words, for errors.
        notify: Receives one line when the server is away. Default: drops it.
        clock: Seconds that never go back.
        sleep: Waits for a number of seconds. Default: until the connection is closed, at the longest.
    """

    def __init__(
        self,
        connection: Connection,
        caller: str = "",
        notify: Notify = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.connection, self.caller, self.notify = connection, caller, notify
        self._closed = threading.Event()
        self._clock, self._sleep = clock, sleep or self._closed.wait

    def close(self) -> None:
        """End all calls with `ConnectionLost`, and do not repeat them. May be called from any thread, and twice."""
        self._closed.set()
        self.connection.close()

    def call(
        self, request: LeadRequest, reply_type: type[ReplyT], body: bytes = b"", timeout_s: float = CALL_TIMEOUT_S
    ) -> tuple[ReplyT, bytes]:
        """Send a request once.

        Args:
            request: The request.
            reply_type: The type of its reply.
            body: Bytes of a file.
            timeout_s: The connection counts as lost after this time without a reply.

        Returns:
            The reply, and its body.

        Raises:
            Refused: The server refused the request; the message says what to do.
            ConnectionLost: The server cannot be reached.
            MalformedMessage: The reply is none that this version understands.
        """
        try:
            reply = self._ask(Ask(RequestContent(request=request).to_bytes(), body), timeout_s)
        except Refused as error:
            raise self._advised(error, request) from error
        try:
            return parse_content(reply_type, reply.content), reply.body
        except MalformedMessage as error:
            raise MalformedMessage(
                f"the reply of {self.connection.address}: {error}; use the version of flcore that the server has"
            ) from error

    def call_until_answered(
        self,
        request: LeadRequest,
        reply_type: type[ReplyT],
        body: bytes = b"",
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        give_up_after_s: float | None = None,
        deadline: float | None = None,
    ) -> tuple[ReplyT, bytes]:
        """Send a request that may be sent twice, again and again with backoff while the server is away.

        Args:
            request: The request.
            reply_type: The type of its reply.
            body: Bytes of a file.
            timeout_s: As of `call`.
            give_up_after_s: Raise `ConnectionLost` when the server has been away for this long. None: never.
            deadline: Raise `TimeoutError` at this time of the clock. None: never.
        """
        outage = Outage(give_up_after_s, self._clock)
        last: ConnectionLost | Refused | None = None
        while True:
            left_s = timeout_s if deadline is None else min(timeout_s, deadline - self._clock())
            if left_s <= 0:
                why = f"; the last error: {last}" if last else ""
                raise TimeoutError(f"no answer of {self.connection.address} within the time that was given{why}") from (
                    last
                )
            try:
                return self.call(request, reply_type, body, left_s)
            except (ConnectionLost, Refused) as error:
                if self._closed.is_set() or (isinstance(error, Refused) and error.kind not in TRY_AGAIN):
                    raise
                if deadline is not None and self._clock() >= deadline:
                    continue  # the call was cut by the deadline
                delay_s, _ = outage.failed(str(error))
                if delay_s is None:
                    raise ConnectionLost(outage.explain_end(str(error))) from error
                if last is None:
                    limit = "until it answers" if give_up_after_s is None else f"for {give_up_after_s:.0f} s"
                    self.notify(f"{error}; trying again {limit}")
                last = error
            self._sleep_until(delay_s, deadline)

    def wait_for_news(
        self,
        request: WaitForJob | ReadLog,
        reply_type: type[ReplyT],
        is_news: Callable[[ReplyT, bytes], bool],
        deadline: float | None = None,
    ) -> tuple[ReplyT, bytes]:
        """Send a request that waits at the server, until its reply is news. Waits for a server that is away, too.

        Args:
            request: The request.
            reply_type: The type of its reply.
            is_news: Whether a reply and its body are more than that the server's longest wait is over.
            deadline: Raise `TimeoutError` at this time of the clock. None: never.
        """
        while True:
            asked_at = self._clock()
            reply, body = self.call_until_answered(
                request, reply_type, timeout_s=LONG_POLL_TIMEOUT_S, deadline=deadline
            )
            if is_news(reply, body):
                return reply, body
            if self._clock() - asked_at < LEAST_POLL_S:
                self._sleep_until(LEAST_POLL_S, deadline)

    def nearest_ids(self, wanted: str) -> str:
        """Return the end of an error about an id that no job has: similar ids, or where to look."""
        try:
            found, _ = self.call(ListJobs(states=[], limit=NEAREST_AMONG), JobList)
        except (ConnectionLost, Refused):  # the first error is the one to tell
            return "; see `flcore list`"
        nearest = difflib.get_close_matches(wanted, [job.id for job in found.jobs])
        return f"; did you mean {' or '.join(map(printable, nearest))}?" if nearest else "; see `flcore list`"

    def _ask(self, ask: Ask, timeout_s: float) -> Reply:
        """Send a request on a thread of its own: Ctrl-C in gRPC's code would leave its locks taken for ever."""
        answered: Future[Reply] = Future()

        def send() -> None:
            try:
                answered.set_result(self.connection.ask(ask, timeout_s))
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                answered.set_exception(error)

        start_new_thread(send, ())
        # Not one long wait: a signal that comes just before the main thread waits is handled after the wait.
        while not wait([answered], timeout=1.0).done:
            pass
        return answered.result()

    def _advised(self, error: Refused, request: LeadRequest) -> Refused:
        """Return a refusal with what the lead can do."""
        text = str(error)
        if error.kind == NOT_ALLOWED and self.caller:
            text += f" (this kit is that of {self.caller})"
        elif error.kind == NO_SUCH_ID:
            text = text.removesuffix("; see flcore list") + self.nearest_ids(getattr(request, "id", ""))
        return Refused(error.kind, text)

    def _sleep_until(self, delay_s: float, deadline: float | None) -> None:
        self._sleep(delay_s if deadline is None else max(0.0, min(delay_s, deadline - self._clock())))
