"""For all tests: their order, and signals as a person at a terminal has them."""

import random
import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--shuffle SEED`, which runs the tests in another order, which no test may notice."""
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in an order drawn with this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Heed Ctrl-C: a shell's background jobs ignore it, and so would the processes that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, if asked to; all workers draw the same order. Long tests begin first, so that no worker ends late."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
