"""Reading a job's process: what it prints, at a bounded rate, and its messages to the agent, of bounded length."""

import os
import select
import time
from collections.abc import Callable

READ_BYTES = 1 << 16

MAX_MESSAGE_BYTES = 1 << 14
"""A longer line on the channel of messages is skipped. flcore's own are shorter."""

BYTES_PER_S = 1 << 20
"""Bytes a second that are read of a process in the long run. Beyond it the pipes fill up, and the process waits."""

BURST_BYTES = 4 << 20
"""Bytes that are read without a pause."""

MAX_LAST_READS = 8
"""How often a pipe is read after `stop`: more often than it takes to empty one, and not for ever."""


class OutputReader:
    """Reads the two pipes of a process until both are closed, or until `stop`.

    A child of the process that has left its group may hold the pipes open: `stop` ends the reading nevertheless.

    Args:
        printed: The descriptor of its prints.
        messages: The descriptor of its messages.
        on_printed: Receives the bytes that are printed.
        on_message: Receives each line of the messages.
    """

    def __init__(
        self, printed: int, messages: int, on_printed: Callable[[bytes], None], on_message: Callable[[bytes], None]
    ) -> None:
        self._messages, self._open_pipes = messages, {printed, messages}
        self._on_printed, self._on_message = on_printed, on_message
        self._woken, self._wake = os.pipe()
        self._line, self._is_too_long = b"", False
        self._allowed, self._counted_at = float(BURST_BYTES), time.monotonic()

    def read(self) -> None:
        """Read until the end."""
        while self._open_pipes:
            wait_s = self._seconds_until_allowed()
            readable = _poll({self._woken} if wait_s else {self._woken, *self._open_pipes}, wait_s or None)
            if self._woken in readable:
                break
            self._read(readable)
        for _ in range(MAX_LAST_READS):
            self._read(_poll(self._open_pipes, 0.0))

    def stop(self) -> None:
        """Have `read` end when it has read what the pipes hold now."""
        os.write(self._wake, b"x")

    def close(self) -> None:
        """Close what the reader has opened. Called after `read` has returned."""
        os.close(self._woken)
        os.close(self._wake)

    def _read(self, readable: set[int]) -> None:
        """Pass on what pipes hold, and forget those at their end. What is printed before a message goes before it."""
        if self._messages in readable:
            readable = readable | _poll(self._open_pipes, 0.0)  # printed after the first look, and before the message
        for pipe in sorted(readable, key=lambda pipe: pipe == self._messages):
            received = os.read(pipe, READ_BYTES)
            self._allowed -= len(received)
            if not received:
                self._open_pipes.discard(pipe)
            elif pipe == self._messages:
                self._split(received)
            else:
                self._on_printed(received)

    def _seconds_until_allowed(self) -> float:
        now = time.monotonic()
        self._allowed = min(BURST_BYTES, self._allowed + (now - self._counted_at) * BYTES_PER_S)
        self._counted_at = now
        return 0.0 if self._allowed > 0 else (READ_BYTES - self._allowed) / BYTES_PER_S

    def _split(self, received: bytes) -> None:
        *lines, rest = (self._line + received).split(b"\n")
        for line in lines:
            if not self._is_too_long and len(line) <= MAX_MESSAGE_BYTES:
                self._on_message(line)
            self._is_too_long = False
        self._is_too_long = self._is_too_long or len(rest) > MAX_MESSAGE_BYTES
        self._line = b"" if self._is_too_long else rest


def _poll(descriptors: set[int], timeout_s: float | None) -> set[int]:
    """Return the descriptors that can be read, after waiting for one; None: without limit."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
