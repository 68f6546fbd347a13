"""Hooks at kill points: functions of the server are wrapped in this process, and nothing in flcore knows of it."""

import functools
import importlib
import os
import sqlite3
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from flcore.server.controller import Controller
from tests.faults.kill_points import KillPoint

Reach = Callable[[KillPoint], None]


class WatchedConnection(sqlite3.Connection):
    """A connection whose commits go through a function, which can be wrapped."""

    def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
        """Execute a statement."""
        if statement == "COMMIT":
            return self.commit_changes()
        return super().execute(statement, *parameters)

    def commit_changes(self) -> sqlite3.Cursor:
        """Commit the open transaction."""
        return super().execute("COMMIT")


class Hooks:
    """Counts the calls of functions in each round, and tells when a point is reached.

    Args:
        points: The points.
        reach: Called in the thread that reaches a point. No other thread passes a hook meanwhile.
        any_later_round: A point is reached in its round or in a later one. Default: False, in its round.
    """

    def __init__(self, points: Sequence[KillPoint], reach: Reach, *, any_later_round: bool = False) -> None:
        self._reach, self._any_later_round = reach, any_later_round
        self._lock = threading.RLock()
        self._round = 0
        self._calls: Counter[tuple[str, str, int]] = Counter()
        self._points: dict[str, list[KillPoint]] = defaultdict(list)
        for point in points:
            self._points[point.target].append(point)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the functions while the block lasts."""
        with ExitStack() as stack:
            if not isinstance(sqlite3.connect, functools.partial):  # `without_syncs` watches, too
                connect = functools.partial(sqlite3.connect, factory=WatchedConnection)
                stack.enter_context(mock.patch.object(sqlite3, "connect", connect))
            stack.enter_context(mock.patch.object(Controller, "_run_round", self._following_rounds()))
            for target, points in self._points.items():
                owner, name = _find(target)
                original = getattr(owner, name)
                stack.enter_context(mock.patch.object(owner, name, self._wrap(target, points, original)))
            yield

    def _following_rounds(self) -> Callable[..., Iterator[int]]:
        original = Controller._run_round

        def run_round(controller: Controller, number: int, *, is_past: bool) -> Iterator[int]:
            self._round = number
            yield from original(controller, number, is_past=is_past)

        return run_round

    def _wrap(self, target: str, points: list[KillPoint], original: Callable[..., Any]) -> Callable[..., Any]:
        places = sorted({point.within for point in points})

        @functools.wraps(original)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                on_stack = _functions_on_stack() if any(places) else set()
                round_, counts = self._round, {}
                for within in places:
                    if not within or within in on_stack:
                        self._calls[target, within, round_] += 1
                        counts[within] = self._calls[target, within, round_]
                self._tell(points, "before", round_, counts)
            result = original(*arguments, **named)
            with self._lock:
                self._tell(points, "after", round_, counts)
            return result

        return wrapped

    def _tell(self, points: list[KillPoint], when: str, round_: int, counts: dict[str, int]) -> None:
        for point in points:
            is_round = round_ >= point.round if self._any_later_round else round_ == point.round
            if point.when == when and is_round and counts.get(point.within) == point.hit:
                self._reach(point)


class UnsyncedConnection(WatchedConnection):
    """A connection that leaves its changes in the page cache."""

    def execute(self, statement: str, /, *parameters: Any) -> sqlite3.Cursor:
        """Execute a statement."""
        if statement.startswith("PRAGMA synchronous"):
            statement = "PRAGMA synchronous=OFF"
        return super().execute(statement, *parameters)


@contextmanager
def without_syncs() -> Iterator[None]:
    """Nothing waits for the disk while the block lasts. A process that is killed loses nothing thereby."""
    connect = functools.partial(sqlite3.connect, factory=UnsyncedConnection)
    with mock.patch.object(sqlite3, "connect", connect), mock.patch.object(os, "fsync", return_value=None):
        yield


def _find(target: str) -> tuple[Any, str]:
    """Return the module or class of a function, and the function's name in it."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def _functions_on_stack() -> set[str]:
    frame, names = sys._getframe(2), set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names
