"""What may take longer than a moment runs on a few worker threads, and what it refuses ends the call it was for."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import grpc
import grpc.aio

from flcore_transport.control import encode
from flcore_transport.endpoint import refusal
from flcore_transport.errors import TransportError
from flcore_transport.grpc_channel import REFUSAL_METADATA
from flcore_transport.messages import Refusal

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Ends:
    """How the calls of one server end with an error: not at all once it is being stopped, because gRPC crashes then."""

    def __init__(self) -> None:
        self.is_stopping = False

    async def refuse(self, context: Context, refused: Refusal) -> None:
        """End a call with a refusal."""
        logger.info("refused a call of %s: %s", context.peer(), refused.message)
        metadata = ((REFUSAL_METADATA, encode(refused)),)
        await self.abort(context, grpc.StatusCode.FAILED_PRECONDITION, "refused", metadata)

    async def abort(
        self, context: Context, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        """End a call with a status."""
        if self.is_stopping:
            raise asyncio.CancelledError(details)
        await context.abort(code, details, trailing_metadata=metadata)


class Work:
    """Worker threads of one server, `threads` of them."""

    def __init__(self, ends: Ends, threads: int = (os.cpu_count() or 1) + 1, name: str = "flcore-pieces") -> None:
        self._ends = ends
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def done(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do `work` on a worker thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, partial(work, *arguments, **named))

    async def answered(self, context: Context, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do `work` on a worker thread and return its result; a `TransportError` of it ends the call."""
        return await self.refusing(context, self.done(work, *arguments, **named))

    async def refusing(self, context: Context, working: Awaitable[T]) -> T:
        """Return the result of `working`; a `TransportError` of it ends the call."""
        try:
            return await working
        except TransportError as error:
            await self._ends.refuse(context, refusal(error.with_traceback(None)))  # whose frames hold what was refused
            raise  # not reached: abort has raised

    def begin(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Do `work` on a worker thread, or here if there is none any more."""
        try:
            self._workers.submit(work, *arguments, **named)
        except RuntimeError:
            work(*arguments, **named)

    def close(self) -> None:
        """Take no more work."""
        self._workers.shutdown(wait=False)


async def read(context: Context) -> bytes | None:
    """Return the next message of a call, or None when its client sends no more.

    It is read from the context: the iterator that gRPC hands out keeps the last message until a garbage collection.
    """
    message = await context.read()
    return None if message is grpc.aio.EOF else message


def seen(future: "asyncio.Future[Any]") -> None:
    """Look at how a future ended that nobody waits for: its call was ended meanwhile, and nothing else is wrong."""
    if not future.cancelled():
        future.exception()


async def owned(working: Coroutine[Any, Any, T], undo: Callable[[T], object]) -> T:
    """Return the result of `working`; if the call is cancelled meanwhile, `undo` gets the result.

    A thread goes on when the call that it works for is cancelled, so what it opens then has to be closed.
    """
    task = asyncio.ensure_future(working)

    def undone(done: "asyncio.Future[T]") -> None:
        if not done.cancelled() and done.exception() is None:
            undo(done.result())

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(undone)
        raise
