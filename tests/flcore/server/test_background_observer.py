"""A background observer: it never makes a caller wait, drops and counts, and ends in a bounded time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flcore.server.background_observer import MAX_LEFT_ALONE, BackgroundObserver, LeftAlone
from flcore.server.events import ClientJoined, ClientLeft, Event


def joined(event: Event) -> str | None:
    return event.client if isinstance(event, ClientJoined) else None


@contextmanager
def held(**options: float) -> Iterator[tuple[BackgroundObserver[str], threading.Event, list[str]]]:
    """An observer whose handler takes its first event, and waits until the event is set that the block gets."""
    handled, begun, release = list[str](), threading.Event(), threading.Event()

    def handle(client: str) -> None:
        begun.set()
        assert release.wait(60)
        handled.append(client)

    observer = BackgroundObserver("held", joined, handle, **options)  # type: ignore[arg-type]
    try:
        with observer:
            observer.observe(ClientJoined("first", 1))
            assert begun.wait(60)
            yield observer, release, handled
    finally:
        release.set()


def test_events_are_handled_in_order_on_another_thread_and_all_before_the_end() -> None:
    handled: list[tuple[str, int]] = []
    with BackgroundObserver("list", joined, lambda client: handled.append((client, threading.get_ident()))) as observer:
        for number in range(100):
            observer.observe(ClientJoined(f"c{number}", number))
            observer.observe(ClientLeft(f"c{number}", number))
    assert [client for client, _ in handled] == [f"c{number}" for number in range(100)]
    assert {thread for _, thread in handled} != {threading.get_ident()}
    assert (observer.dropped, observer.failed) == (0, 0)


def test_a_full_queue_drops_and_counts_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with held(max_events=3) as (observer, release, handled):
        for number in range(10):
            observer.observe(ClientJoined(f"c{number}", number))
        assert observer.dropped == 7
        assert [record.message for record in caplog.records] == [
            "held is slower than the run: events are left out from now on"
        ]
        release.set()
    assert handled == ["first", "c0", "c1", "c2"]
    assert caplog.records[-1].message == "held: 7 events were left out, 0 failed"
    assert len(caplog.records) == 2


def test_an_error_is_counted_and_said_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(client: str) -> None:
        raise RuntimeError(f"no place for {client}\n\x1b[2J")

    with BackgroundObserver("failing", joined, fail) as observer:
        for client in ("a", "b", "c"):
            observer.observe(ClientJoined(client, 1))
    assert observer.failed == 3
    assert [record.message for record in caplog.records] == [
        "failing failed, and the run goes on: RuntimeError: no place for a\\n\\x1b[2J",
        "failing: 0 events were left out, 3 failed",
    ]


def test_a_handler_that_hangs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with held(close_timeout_s=0.05) as (observer, _, handled):
        observer.observe(ClientJoined("second", 2))
    assert handled == [] or handled == ["first"]
    assert observer.dropped == 1
    assert "held did not end in time, and is left alone" in [record.message for record in caplog.records]
    observer.observe(ClientJoined("late", 3))
    assert observer.dropped == 2, "what comes after the end is not kept"


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_an_error_that_ends_threads_ends_not_this_one(error: BaseException) -> None:
    handled = list[str]()

    def fail_first(client: str) -> None:
        if client == "first":
            raise error
        handled.append(client)

    with BackgroundObserver("failing", joined, fail_first) as observer:
        observer.observe(ClientJoined("first", 1))
        observer.observe(ClientJoined("second", 2))
    assert (handled, observer.failed) == (["second"], 1)


def test_a_handler_that_never_returns_keeps_a_bounded_number_of_threads(caplog: pytest.LogCaptureFixture) -> None:
    release, left_alone, begun = threading.Event(), LeftAlone(), list[threading.Event]()
    try:
        for _ in range(MAX_LEFT_ALONE + 3):
            has_begun = threading.Event()

            def hang(_: str, has_begun: threading.Event = has_begun) -> None:
                has_begun.set()
                assert release.wait(60)

            with BackgroundObserver("hung", joined, hang, close_timeout_s=0.0, left_alone=left_alone) as observer:
                observer.observe(ClientJoined("north", 1))
                if len(begun) < MAX_LEFT_ALONE:
                    assert has_begun.wait(60)
                    begun.append(has_begun)
            assert observer.dropped == (0 if has_begun.is_set() else 1)
        hanging = [thread for thread in threading.enumerate() if thread.name == "flcore-hung"]
        assert len(hanging) == len(begun) == MAX_LEFT_ALONE
        assert caplog.text.count("hung still hangs in 4 earlier runs, and gets nothing of this one") == 3
        assert "slower than the run" not in caplog.text
    finally:
        release.set()
    for thread in hanging:
        thread.join(60)
    handled = list[str]()
    with BackgroundObserver("hung", joined, handled.append, left_alone=left_alone) as observer:
        observer.observe(ClientJoined("north", 1))
    assert handled == ["north"], "a handler that has come back gets the next run"
