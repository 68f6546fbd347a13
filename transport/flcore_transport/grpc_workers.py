"""Worker threads for work that would block the event loop, and the end of calls whose work is refused."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import grpc
import grpc.aio

from flcore_transport.control import encode_message
from flcore_transport.endpoint import to_refusal
from flcore_transport.errors import TransportError
from flcore_transport.grpc_channel import REFUSAL_METADATA
from flcore_transport.messages import Refusal

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


REQUEST_TIMEOUT_S = 30.0
"""Seconds within which the first message of a call with a session must arrive. It has at most 1 MiB."""


class CallAborter:
    """Ends calls of one server with an error; cancels them while the server stops, when gRPC crashes on an abort."""

    def __init__(self) -> None:
        self.is_stopping = False

    async def refuse(self, context: Context, refused: Refusal) -> None:
        """End a call with a refusal."""
        logger.info("refused a call of %s: %s", context.peer(), refused.message)
        metadata = ((REFUSAL_METADATA, encode_message(refused)),)
        await self.abort(context, grpc.StatusCode.FAILED_PRECONDITION, "refused", metadata)

    async def abort(
        self, context: Context, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        """End a call with a status."""
        if self.is_stopping:
            raise asyncio.CancelledError(details)
        await context.abort(code, details, trailing_metadata=metadata)


class WorkerPool:
    """Worker threads of one server, `thread_count` of them."""

    def __init__(
        self, aborter: CallAborter, thread_count: int = (os.cpu_count() or 1) + 1, name: str = "flcore-pieces"
    ) -> None:
        self._aborter = aborter
        self._executor = ThreadPoolExecutor(thread_count, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run `work` on a worker thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *arguments, **named))

    async def run_or_refuse(self, context: Context, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run `work` on a worker thread and return its result; its `TransportError` ends the call."""
        return await self.refuse_on_error(context, self.run(work, *arguments, **named))

    async def refuse_on_error(self, context: Context, coroutine: Awaitable[T]) -> T:
        """Return the result of `coroutine`; its `TransportError` ends the call."""
        try:
            return await coroutine
        except TransportError as error:
            # Without the traceback, whose frames hold the refused payload.
            await self._aborter.refuse(context, to_refusal(error.with_traceback(None)))
            raise  # not reached: refuse has raised

    async def read_request(self, context: Context) -> bytes:
        """Return the first message of a call, or end the call if it is late: gRPC holds what has come of it."""
        reading = asyncio.ensure_future(read_message(context))
        reading.add_done_callback(ignore_outcome)
        await asyncio.wait({reading}, timeout=REQUEST_TIMEOUT_S)
        if not reading.done():
            await self._aborter.abort(context, grpc.StatusCode.UNAVAILABLE, "no request came in time")
        return reading.result() or b""

    def submit(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Run `work` on a worker thread, or on this one if the pool is closed."""
        try:
            self._executor.submit(work, *arguments, **named)
        except RuntimeError:
            work(*arguments, **named)

    def close(self) -> None:
        """Take no more work."""
        self._executor.shutdown(wait=False)


async def read_message(context: Context) -> bytes | None:
    """Return the next message of a call, or None when its client sends no more.

    Read from the context, because gRPC's iterator keeps the last message until a garbage collection.
    """
    message = await context.read()
    return None if message is grpc.aio.EOF else message


def ignore_outcome(future: "asyncio.Future[Any]") -> None:
    """Mark a future's exception as seen: its call has ended, so asyncio must not log it."""
    if not future.cancelled():
        future.exception()


async def run_with_cleanup(coroutine: Coroutine[Any, Any, T], cleanup: Callable[[T], object]) -> T:
    """Return the result of `coroutine`; if the call is cancelled meanwhile, `cleanup` gets the result.

    A cancelled call does not stop its worker thread, so whatever the thread opens has to be closed.
    """
    task = asyncio.ensure_future(coroutine)

    def clean_up(done: "asyncio.Future[T]") -> None:
        if not done.cancelled() and done.exception() is None:
            cleanup(done.result())

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(clean_up)
        raise
