"""Reading ahead: the next input is fetched while the present one is worked on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(fetch: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """Yield each item with what `fetch` returns for it; the next one is fetched meanwhile, on a thread of its own.

    >>> list(ahead(str, [1, 2]))
    [(1, '1'), (2, '2')]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="flcore-ahead") as thread:
        waiting = None
        for item in items:
            coming = item, thread.submit(fetch, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()
