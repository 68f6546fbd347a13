"""`FlowControl` for threads: calls queue here for windows, and find out at their next step that they have to end.

There is no timer thread. Timeouts matter only to queued calls, so the first queued call waits with a timeout and ticks.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from flcore_transport.errors import ConnectionLost
from flcore_transport.flow_control import Action, FlowControl, Instruction, Transfer


class TransferScheduler:
    """The transfers of one server. Any thread may call."""

    def __init__(self, flow_control: FlowControl) -> None:
        self.flow_control = flow_control
        self.lock = threading.Lock()
        self.calls: dict[Transfer, TransferCall] = {}
        self.queued_calls: dict[TransferCall, None] = {}
        self._tick_at = math.inf

    @contextmanager
    def transfer(self, client: str, direction: str, assignment_id: int) -> "Iterator[TransferCall]":
        """Register a transfer while the block lasts."""
        with self.lock:
            transfer, actions = self.flow_control.begin(client, direction, assignment_id)
            call = self.calls[transfer] = TransferCall(self, transfer)
            self.apply(actions)
        try:
            yield call
        finally:
            with self.lock:
                del self.calls[transfer]
                self.apply(self.flow_control.end(transfer, is_done=call.is_done))

    def cancel(self, client: str, assignment_id: int) -> None:
        """End a client's transfers of an assignment."""
        with self.lock:
            self.apply(self.flow_control.cancel(client, assignment_id))

    def apply(self, actions: list[Action]) -> None:
        """Wake the calls whose transfers have changed. The caller holds the lock, as for all methods below."""
        pending = deque(actions)
        while pending:
            transfer, instruction = pending.popleft()
            call = self.calls.get(transfer)
            if call is not None:
                call.changed.notify()
                # Its thread runs the client's code and may never return. No piece is in flight, so end it here.
                if instruction is Instruction.END and call.is_waiting_for_client:
                    pending.extend(self.flow_control.end(transfer))
        self.arm_timer()

    def arm_timer(self) -> None:
        """Wake the first queued call if `FlowControl` is due earlier than that call knows."""
        if self.flow_control.due_at < self._tick_at:
            self._tick_at = self.flow_control.due_at
            self.wake_first()

    def wake_first(self) -> None:
        """Wake the first queued call, which keeps the time."""
        if self.queued_calls and self._tick_at < math.inf:
            next(iter(self.queued_calls)).changed.notify()

    def wait_for_change(self, changed: threading.Condition) -> None:
        """Wait for a change or for the time at which `FlowControl` is due, and then tick."""
        changed.wait(None if self._tick_at == math.inf else max(0.0, self._tick_at - time.monotonic()))
        now = time.monotonic()
        if now >= self._tick_at:
            self._tick_at = math.inf
            self.apply(self.flow_control.tick(now))


class TransferCall:
    """One upload or download call. Its methods raise a `TransportError` as soon as it has to end."""

    def __init__(self, scheduler: TransferScheduler, transfer: Transfer) -> None:
        self.is_done = self.is_waiting_for_client = self._is_disconnected = False
        self.changed = threading.Condition(scheduler.lock)
        self._scheduler, self._transfer = scheduler, transfer

    @property
    def has_window(self) -> bool:
        """Whether it has a window."""
        return bool(self._transfer.window)

    def acquire_window(self) -> None:
        """Queue for a window, unless the transfer has one."""
        with self._scheduler.lock:
            self._scheduler.apply(self._scheduler.flow_control.request_window(self._transfer))
            self._scheduler.queued_calls[self] = None
            try:
                while not self._transfer.window and not self._must_end:
                    self._scheduler.wait_for_change(self.changed)
            finally:
                del self._scheduler.queued_calls[self]
                self._scheduler.wake_first()
        self.raise_if_ended()

    def wait_for_server(self, future: "Future[None]") -> None:
        """Wait for work of the server. Not counted as a stall."""

        def tell(_: "Future[None]") -> None:
            with self._scheduler.lock:
                self.changed.notify()

        future.add_done_callback(tell)
        with self._scheduler.lock:
            while not future.done() and not self._must_end:
                self.changed.wait()
        self.raise_if_ended()
        future.result()

    @contextmanager
    def waiting_for_client(self) -> Iterator[None]:
        """A block in which the client produces or reads a piece. Counted as a stall (`FlowControl`)."""
        with self._scheduler.lock:
            self.raise_if_ended()  # a call that was told to end must not block the window that it still has
            self.is_waiting_for_client = True
            self._scheduler.flow_control.begin_client_wait(self._transfer, time.monotonic())
            self._scheduler.arm_timer()
        try:
            yield
        finally:
            with self._scheduler.lock:
                self.is_waiting_for_client = False
                self._scheduler.flow_control.end_client_wait(self._transfer)

    def disconnect(self) -> None:
        """The connection is closed."""
        with self._scheduler.lock:
            self._is_disconnected = True
            self.changed.notify()

    @property
    def _must_end(self) -> bool:
        return self._is_disconnected or self._transfer.ending is not None

    def raise_if_ended(self) -> None:
        """Raise the error with which the call has to end, if it has to end."""
        if self._is_disconnected:
            raise ConnectionLost("the connection is closed")
        if self._transfer.ending is not None:
            raise self._transfer.ending.error()
