"""Asks: requests without a session, such as those of a lead. The certificate says who asks; the layer above answers.

An answer may be a future, as of a request that waits for something to happen. It is awaited on the event loop, so it
holds no thread. It is cancelled when its caller hangs up, and after `REPLY_TIMEOUT_S`.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future

import grpc

from flcore_transport.control import decode_message, encode_message
from flcore_transport.errors import Refused, TransportError
from flcore_transport.grpc_calls import CallGate, IncomingCall
from flcore_transport.grpc_flow_control import shut_down_connection
from flcore_transport.grpc_workers import CallAborter, WorkerPool, ignore_outcome, run_with_cleanup
from flcore_transport.identity import Identity
from flcore_transport.messages import PROTOCOL, Ask, Reply, require_ask_size

logger = logging.getLogger(__name__)

ASK_THREADS = 4
"""Threads of their own: an answer may wait for a disk, and pieces and joins must not wait for it."""

REPLY_TIMEOUT_S = 60.0
"""Seconds within which the future of a reply must be done."""

READ_TIMEOUT_S = 30.0
"""Seconds that a caller has to read its reply."""

Answer = Callable[[Identity | None, Ask], "Reply | Future[Reply]"]
"""Answers an ask, or raises `Refused`. The identity is None over plaintext.

Called on one of `ASK_THREADS` threads, so it returns soon: an answer that waits for something is a future.

The transport cancels a future whose caller has gone. So the answering side sets a result only if
`future.set_running_or_notify_cancel()` returns True.
"""


class AskHandler:
    """Serves the asks of one server. `answer=None` refuses them all."""

    def __init__(self, answer: Answer | None, gate: CallGate, aborter: CallAborter) -> None:
        self._answer, self._gate = answer, gate
        self._workers = WorkerPool(aborter, ASK_THREADS, "flcore-asks")

    async def ask(self, call: IncomingCall) -> None:
        """Answer one ask. Refusals are reported."""
        try:
            if self._answer is None:
                raise Refused(
                    "no-requests", "this server runs one job and takes no requests; ask a standing federation"
                )
            data = await self._workers.read_request(call.context)
            reply = await self._reply(self._answer, call, await self._workers.run(_decode, data))
        except grpc.aio.AbortError:
            raise
        except TransportError as error:
            await self._gate.refuse(call, error.with_traceback(None), is_reason_due=True)
            return
        except Exception:
            logger.exception("an ask could not be answered")
            failed = Refused("internal", "the server could not answer; see its log")
            await self._gate.refuse(call, failed, is_reason_due=True)
            return
        await self._send(call, reply)

    async def _reply(self, answer: Answer, call: IncomingCall, ask: Ask) -> bytes:
        """Return the bytes of the reply to an ask."""
        answering = self._workers.run(answer, call.identity, ask)
        reply = await run_with_cleanup(answering, _cancel)
        if isinstance(reply, Future):
            reply = await self._wait_for(call, reply)
        try:
            require_ask_size(reply)
        except Refused as error:
            raise ValueError(str(error)) from error  # the answering side's mistake, not the caller's
        return await self._workers.run(encode_message, reply)

    async def _send(self, call: IncomingCall, reply: bytes) -> None:
        """Send a reply. A caller that does not read it is disconnected: it would hold the reply for ever."""
        writing = asyncio.ensure_future(call.context.write(reply))
        writing.add_done_callback(ignore_outcome)
        await asyncio.wait({writing}, timeout=READ_TIMEOUT_S)
        if not writing.done():
            logger.info("%s does not read its reply: its connection is shut down", call.context.peer())
            await asyncio.to_thread(shut_down_connection, call.context.peer())
            await asyncio.wait({writing}, timeout=READ_TIMEOUT_S)

    async def _wait_for(self, call: IncomingCall, future: "Future[Reply]") -> Reply:
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(ignore_outcome)
        try:
            await asyncio.wait({waiting}, timeout=REPLY_TIMEOUT_S)
        finally:
            waiting.cancel()  # no effect if it is done
        if waiting.cancelled() or not waiting.done():
            raise Refused("no-reply", f"the server had no reply within {REPLY_TIMEOUT_S:g} s; ask again")
        self._gate.require_accepted(call)  # it may have been revoked meanwhile
        return waiting.result()

    def close(self) -> None:
        """Take no more asks."""
        self._workers.close()


def _decode(data: bytes) -> Ask:
    ask = decode_message(Ask, data)
    if ask.protocol != PROTOCOL:
        raise Refused(
            "protocol",
            f"the server speaks protocol version {PROTOCOL}, this request {ask.protocol}; install the server's version "
            "of flcore",
        )
    require_ask_size(ask)
    return ask


def _cancel(reply: "Reply | Future[Reply]") -> None:
    if isinstance(reply, Future):
        reply.cancel()
