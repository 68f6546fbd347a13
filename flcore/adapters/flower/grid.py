"""A grid that hands replies on one by one as they arrive, so that each can be folded and let go."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

MIN_POLL_S, MAX_POLL_S = 0.01, 0.25
"""Between two rounds of asking: Flower's grids can only be asked."""


class StreamingGrid(Grid):  # type: ignore[misc]  # it has a type only where Flower is installed
    """A grid around Flower's own, for strategies that take replies as they come (`FlcoreMean`).

    `send_and_receive` returns an iterator for training: it asks for replies `at_once` at a time, so that no more than
    these are in memory beside what the strategy holds, and waits a quarter of a second at most where nothing has come,
    not three. Replies of other kinds, which are small, come as a list.
    """

    def __init__(self, grid: Grid, *, at_once: int = 1) -> None:
        if at_once < 1:
            raise ValueError(f"at_once: expected at least 1, got {at_once}")
        self._grid, self._at_once = grid, at_once

    def set_run(self, run: Any) -> None:
        """Set the run (see `Grid.set_run`)."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run (see `Grid.run`)."""
        return self._grid.run

    def create_message(self, *arguments: Any, **keywords: Any) -> Message:
        """Return a message (see `Grid.create_message`)."""
        return self._grid.create_message(*arguments, **keywords)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that there are (see `Grid.get_node_ids`)."""
        nodes: Iterable[int] = self._grid.get_node_ids()
        return nodes

    def get_nodes(self) -> Iterable[Any]:
        """Return what is known of the nodes (see `Grid.get_nodes`, in releases that have it)."""
        nodes: Iterable[Any] = self._grid.get_nodes()
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages (see `Grid.push_messages`)."""
        identifiers: Iterable[str] = self._grid.push_messages(messages)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there (see `Grid.pull_messages`)."""
        messages: Iterable[Message] = self._grid.pull_messages(message_ids)
        return messages

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages now, and return their replies: as they come where they train, or else all at the end.

        After `timeout` seconds (None: never) those that are there still come, and no others.
        """
        outgoing = list(messages)
        trains = any(message.metadata.message_type.startswith(MessageType.TRAIN) for message in outgoing)
        pending = [each for each in self._grid.push_messages(outgoing) if each] if outgoing else []
        del outgoing
        replies = self._replies(pending, None if timeout is None else time.monotonic() + timeout)
        return replies if trains else list(replies)

    def _replies(self, pending: list[str], until: float | None) -> Iterator[Message]:
        pause, is_first = MIN_POLL_S, True
        while pending:
            began, answered = time.monotonic(), set[str]()
            for start in range(0, len(pending), self._at_once):
                if until is not None and time.monotonic() >= until and not is_first:
                    return
                for reply in self._grid.pull_messages(pending[start : start + self._at_once]):
                    answered.add(reply.metadata.reply_to_message_id)
                    yield reply
                    del reply
            pending, is_first = [each for each in pending if each not in answered], False
            pause = MIN_POLL_S if answered else min(2 * pause, MAX_POLL_S)
            if pending and not answered:
                time.sleep(max(pause, time.monotonic() - began))  # whoever asks for many rests as long as it asked
