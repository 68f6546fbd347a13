"""Addresses: what a server prints can be typed, and what is typed wrongly is told how it is right."""

import shlex

import pytest
import typer
from flcore_transport import GrpcServer, Service, is_loopback, split_address

from flcore.cli.addresses import join_commands, listen_address
from flcore.errors import FlcoreError


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ["localhost:8470 --insecure"]),
        ("localhost", ["localhost:8470 --insecure"]),
        ("127.0.0.2", ["127.0.0.2:8470 --insecure"]),
        ("::1", ["[::1]:8470 --insecure"]),
        ("10.1.2.3", ["10.1.2.3:8470 --insecure-remote"]),
        ("2001:db8::1", ["[2001:db8::1]:8470 --insecure-remote"]),
        ("hub.example", ["hub.example:8470 --insecure-remote"]),
    ],
)
def test_how_a_server_is_joined(host: str, expected: list[str]) -> None:
    prefix = "flcore client digits --name NAME --server "
    assert join_commands("digits", host, 8470) == [prefix + way for way in expected]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_on_all_addresses_is_joined_from_here_and_from_elsewhere(host: str) -> None:
    here, elsewhere = (shlex.split(way) for way in join_commands("my jobs/a", host, 8470))
    assert here[2] == "my jobs/a" and here[-2:] == ["localhost:8470", "--insecure"]
    assert elsewhere[-1] == "--insecure-remote"
    name, port = split_address(elsewhere[-2])
    assert name not in (host, "localhost") and port == 8470


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]:8470", ("::1", 8470)),
        ("::1:8470", r"stands in brackets: \[::1\]:8470$"),
        ("2001:db8::7:80", r"stands in brackets: \[2001:db8::7\]:80$"),
        ("fe80::1", r"stands in brackets: \[fe80::1\]:PORT$"),
        ("[::1]", "expected HOST:PORT"),
        ("[::1:8470", "expected HOST:PORT"),
        ("[]:8470", "expected HOST:PORT"),
        ("localhost", "expected HOST:PORT"),
        ("localhost:65536", "expected HOST:PORT"),
        ("http://localhost:8470", "leave out what stands before the host"),
        ("admin@localhost:8470", "expected HOST:PORT"),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, expected: tuple[str, int] | str) -> None:
    if isinstance(expected, tuple):
        assert split_address(address) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            split_address(address)


@pytest.mark.parametrize(
    ("text", "address", "is_local"),
    [
        ("8480", ("127.0.0.1", 8480), True),
        ("localhost:8480", ("127.0.0.1", 8480), True),
        ("[::1]:0", ("::1", 0), True),
        ("127.8.8.8:1", ("127.8.8.8", 1), True),
        ("0.0.0.0:8480", ("0.0.0.0", 8480), False),
        ("fl.example.org:8480", ("fl.example.org", 8480), False),
    ],
)
def test_a_server_listens_on_a_port_of_this_machine_or_on_a_host(
    text: str, address: tuple[str, int], is_local: bool
) -> None:
    assert listen_address(text, "--web") == address and is_loopback(address[0]) == is_local


@pytest.mark.parametrize("text", ["", "x", "70000", "host:", "http://localhost:80", ":80", "::1:80", "-1"])
def test_where_a_server_cannot_listen_is_a_usage_error_of_the_option(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"expected \[HOST:\]PORT, got ") as caught:
        listen_address(text, "--web")
    assert caught.value.param_hint == "--web" and repr(text) in str(caught.value)


class Nobody:
    """A service that no client joins."""

    def admit(self, client: str, content: bytes) -> bytes:
        raise FlcoreError(client)

    client_connected = client_disconnected = begin_download = begin_upload = task_failed = admit


def test_a_server_on_ipv6_tells_its_address_as_it_is_typed() -> None:
    service: Service = Nobody()  # type: ignore[assignment]
    server = GrpcServer(service, host="::1")
    host, port = split_address(server.address)
    server.close()
    assert (host, server.address) == ("::1", f"[::1]:{port}")
