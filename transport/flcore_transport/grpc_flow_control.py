"""`FlowControl` on the event loop: calls wait here for windows and for their clients, and are told to end.

gRPC cannot end a call whose client does not read: the status queues behind the piece in flight. After a second flcore
shuts down the connection instead. If that fails several times, the call is left to gRPC and its window is freed.
"""

import asyncio
import logging
import math
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from flcore_transport.endpoint import to_refusal
from flcore_transport.errors import Refused
from flcore_transport.flow_control import Action, Ending, FlowControl, Transfer, TransferEnded
from flcore_transport.grpc_workers import CallAborter, Context, ignore_outcome

logger = logging.getLogger(__name__)

SHUT_DOWN_AFTER_S = 1.0
"""Seconds that a client has to read the end of its call."""

MAX_SHUT_DOWNS = 5
"""The most attempts to shut down a connection, `SHUT_DOWN_AFTER_S` apart."""

JobClient = tuple[str, str]
"""A job's id and a client's name: the same name in two jobs is two clients."""

DESCRIPTOR_DIRECTORY = "/dev/fd"


class TransferScheduler:
    """The transfers of one server. All methods run on its event loop."""

    def __init__(self, flow_control: FlowControl, aborter: CallAborter) -> None:
        self._flow_control, self._aborter = flow_control, aborter
        self._calls: dict[Transfer, TransferCall] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def transfer(
        self, client: JobClient, direction: str, assignment_id: int, context: Context
    ) -> "AsyncIterator[TransferCall]":
        """Register a transfer while the block lasts. If the transfer has to end, end its call."""
        transfer, actions = self._flow_control.begin(client, direction, assignment_id)
        call = self._calls[transfer] = TransferCall(self, self._flow_control, transfer, client)
        self.apply(actions)
        try:
            yield call
        except TransferEnded as ended:
            await self._end_call(context, ended.ending)
        finally:
            del self._calls[transfer]
            self.apply(self._flow_control.end(transfer, is_done=call.is_done))

    def cancel(self, client: JobClient, assignment_id: int) -> None:
        """End a client's transfers of an assignment."""
        self.apply(self._flow_control.cancel(client, assignment_id))

    def end_client(self, client: JobClient) -> None:
        """End all transfers of a client whose certificate is not accepted any more."""
        self.apply(self._flow_control.end_client(client))

    def end_job(self, job: str) -> None:
        """End all transfers of a job that this server has left. Their clients call again, and learn why."""
        for client in {call.client for call in self._calls.values() if call.client[0] == job}:
            self.apply(self._flow_control.end_client(client, Ending.JOB_LEFT))

    def apply(self, actions: list[Action]) -> None:
        """Wake the calls whose transfers have changed, and set the timer for the next change."""
        for transfer, _ in actions:
            if transfer in self._calls:
                self._calls[transfer].wake()
        self.arm_timer()

    def arm_timer(self) -> None:
        """Set the timer to the time at which `FlowControl` is due."""
        due_at = self._flow_control.due_at
        if self._timer is not None and self._timer.when() > due_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due_at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(due_at, self._tick)

    async def _end_call(self, context: Context, ending: Ending) -> None:
        """Tell the client why its call ends; shut down its connection if it does not read."""
        error = ending.error()
        aborting = asyncio.ensure_future(
            self._aborter.refuse(context, to_refusal(error))
            if isinstance(error, Refused)
            else self._aborter.abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
        )
        aborting.add_done_callback(ignore_outcome)
        await asyncio.wait({aborting}, timeout=SHUT_DOWN_AFTER_S)
        for _ in range(MAX_SHUT_DOWNS):
            if aborting.done():
                break
            logger.info("%s does not read: its connection is shut down", context.peer())
            # On a thread: it examines every file descriptor of the process.
            shutting_down = asyncio.ensure_future(asyncio.to_thread(shut_down_connection, context.peer()))
            shutting_down.add_done_callback(ignore_outcome)
            await asyncio.wait({shutting_down})
            await asyncio.wait({aborting}, timeout=SHUT_DOWN_AFTER_S)
        if not aborting.done():
            logger.warning("%s does not read, and its connection cannot be shut down", context.peer())
            raise asyncio.CancelledError  # as if gRPC had cancelled the call: no status is sent
        await aborting

    def _tick(self) -> None:
        self._timer = None
        self.apply(self._flow_control.tick(asyncio.get_running_loop().time()))


class TransferCall:
    """One upload or download call. Its methods wait, and raise `TransferEnded` as soon as it has to end."""

    def __init__(
        self, scheduler: TransferScheduler, flow_control: FlowControl, transfer: Transfer, client: JobClient
    ) -> None:
        self.is_done, self.client = False, client
        self._scheduler, self._flow_control, self._transfer = scheduler, flow_control, transfer
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    @property
    def window(self) -> int:
        """The pieces that may be in flight now."""
        return self._transfer.window

    def wake(self) -> None:
        """Make the waiting method check the transfer again."""
        if not self._woken.done():
            self._woken.set_result(None)

    async def acquire_window(self) -> None:
        """Queue for a window, unless the transfer has one."""
        if not self._transfer.window:
            self._scheduler.apply(self._flow_control.request_window(self._transfer))
        while not self._transfer.window:
            await self._wait_for_change()
        self._raise_if_ended()

    async def wait_for_server(self, future: "asyncio.Future[Any]") -> None:
        """Wait for work of the server, which continues even if this call ends. Not counted as a stall."""
        self._raise_if_ended()
        while not future.done():
            await self._wait_for_change(future)

    async def wait_for_client(self, future: "asyncio.Future[Any]") -> None:
        """Wait for the client to send or read a piece. Counted as a stall (`FlowControl`)."""
        if not future.done():
            self._flow_control.begin_client_wait(self._transfer, self._loop.time())
            self._scheduler.arm_timer()
        await self.wait_for_server(future)
        self._flow_control.end_client_wait(self._transfer)

    async def _wait_for_change(self, *futures: "asyncio.Future[Any]") -> None:
        """Wait until one of `futures` is done or `wake` is called. Cancels none of them: gRPC's operations go on."""
        await asyncio.wait({self._woken, *futures}, return_when=asyncio.FIRST_COMPLETED)
        if self._woken.done():
            self._woken = self._loop.create_future()
        self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._transfer.ending is not None:
            raise TransferEnded(self._transfer.ending)


def shut_down_connection(peer: str) -> None:
    """Shut down this process's connection from `peer`, as gRPC names it (`ipv4:127.0.0.1:8470`).

    gRPC has no function for it. It notices that the connection has ended, and ends all calls on it.
    """
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    for file in Path(DESCRIPTOR_DIRECTORY).iterdir():
        with _duplicate_socket(int(file.name)) as found:
            if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            with suppress(OSError):  # a listening socket, or one closed meanwhile
                peer_address = found.getpeername()
                if (peer_address[0].removeprefix("::ffff:"), peer_address[1]) == (host.strip("[]"), int(port)):
                    found.shutdown(socket.SHUT_RDWR)


@contextmanager
def _duplicate_socket(descriptor: int) -> "Iterator[socket.socket | None]":
    """A socket object for a duplicate of a descriptor, or None. The descriptor itself stays open and unchanged."""
    copy = -1
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            copy = os.dup(descriptor)  # gRPC may close its own meanwhile, and its number be reused
        found = socket.socket(fileno=copy) if copy >= 0 else None
    except OSError:  # closed meanwhile, or no descriptor is left for the duplicate
        found = None
    try:
        yield found
    finally:
        if found is not None:
            found.close()
        elif copy >= 0:
            os.close(copy)
