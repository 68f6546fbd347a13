"""A lead at a server in memory."""

from collections.abc import Iterator

import pytest

from flcore.lead.connection import FederationConnection
from flcore.lead.server_calls import ServerCalls
from tests.flcore.lead.fake_server import FakeServer


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def calls(server: FakeServer, notices: list[str]) -> ServerCalls:
    """Calls whose backoff takes no time."""
    return ServerCalls(server, "alice, lead of hospitals", notices.append, sleep=lambda _: None)


@pytest.fixture
def federation(calls: ServerCalls) -> Iterator[FederationConnection]:
    with FederationConnection(calls) as connection:
        yield connection
