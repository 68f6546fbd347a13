"""A grid that yields replies as they arrive, so that each can be folded and freed."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

MIN_POLL_S, MAX_POLL_S = 0.01, 0.25
"""The shortest and the longest interval between polls. Flower's grids have no notification of replies."""


class StreamingGrid(Grid):  # type: ignore[misc]  # mypy runs without Flower
    """A wrapper of Flower's grid, for strategies that fold replies as they arrive (`FlcoreStrategy`).

    For training, `send_and_receive` returns an iterator. It pulls `at_once` replies at a time, so only these are in
    memory beside those that the strategy holds. Between polls it waits 0.25 s at most, or as long as the last poll
    took; Flower waits 3 s. Other replies are small, and are returned as a list.

    Args:
        grid: Flower's grid.
        at_once: The number of replies to pull at a time, >= 1. Default: 1.

    Raises:
        ValueError: `at_once` is below 1.

    Example:
        >>> strategy.start(grid=StreamingGrid(grid), initial_arrays=arrays)  # doctest: +SKIP
    """

    def __init__(self, grid: Grid, *, at_once: int = 1) -> None:
        if at_once < 1:
            raise ValueError(f"at_once: expected at least 1, got {at_once}")
        self._grid, self._at_once = grid, at_once

    def set_run(self, run: Any) -> None:
        """Set the run (`Grid.set_run`)."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run (`Grid.run`)."""
        return self._grid.run

    def create_message(self, *arguments: Any, **keywords: Any) -> Message:
        """Create a message (`Grid.create_message`)."""
        return self._grid.create_message(*arguments, **keywords)

    def get_node_ids(self) -> Iterable[int]:
        """Return the identifiers of the nodes (`Grid.get_node_ids`)."""
        nodes: Iterable[int] = self._grid.get_node_ids()
        return nodes

    def get_nodes(self) -> Iterable[Any]:
        """Return the nodes' descriptions (`Grid.get_nodes`, in releases of Flower that have it)."""
        nodes: Iterable[Any] = self._grid.get_nodes()
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages (`Grid.push_messages`)."""
        identifiers: Iterable[str] = self._grid.push_messages(messages)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived (`Grid.pull_messages`)."""
        messages: Iterable[Message] = self._grid.pull_messages(message_ids)
        return messages

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages at once, and return their replies.

        Args:
            messages: The messages to send.
            timeout: Seconds after which only replies that have arrived are returned. Default: None, no timeout.

        Returns:
            For training, an iterator that yields replies as they arrive; else a list of all replies.
        """
        outgoing = list(messages)
        is_training = any(message.metadata.message_type.startswith(MessageType.TRAIN) for message in outgoing)
        # Flower returns None, or an empty identifier, for a message that it could not push.
        pending = [identifier for identifier in self._grid.push_messages(outgoing) if identifier] if outgoing else []
        del outgoing  # the messages hold the model
        replies = self._replies(pending, None if timeout is None else time.monotonic() + timeout)
        return replies if is_training else list(replies)

    def _replies(self, pending: list[str], deadline: float | None) -> Iterator[Message]:
        """Yield replies until none is pending or the deadline has passed; each message is asked for at least once."""
        pause_s, is_first = MIN_POLL_S, True
        while pending:
            began, answered = time.monotonic(), set[str]()
            for start in range(0, len(pending), self._at_once):
                if deadline is not None and time.monotonic() >= deadline and not is_first:
                    return
                for reply in self._grid.pull_messages(pending[start : start + self._at_once]):
                    answered.add(reply.metadata.reply_to_message_id)
                    yield reply
                    del reply  # the loop variable would keep it alive while the next one is pulled
            pending, is_first = [identifier for identifier in pending if identifier not in answered], False
            pause_s = MIN_POLL_S if answered else min(2 * pause_s, MAX_POLL_S)
            if pending and not answered:
                time.sleep(max(pause_s, time.monotonic() - began))  # wait at least as long as the poll took
