"""Addresses on the command line: where a server listens, and the commands with which clients join it."""

import ipaddress
import shlex
import socket

import typer
from flcore_transport import is_loopback, join_address, split_address

DEFAULT_PORT = 8470


def listen_address(text: str, option: str) -> tuple[str, int]:
    """Return host and port of `[HOST:]PORT`, or raise a usage error of an option. The default host is 127.0.0.1.

    >>> listen_address("9464", "--metrics"), listen_address("[::1]:9464", "--metrics")
    (('127.0.0.1', 9464), ('::1', 9464))
    """
    try:
        host, port = split_address(f"127.0.0.1:{text}" if text.isdecimal() else text)
    except ValueError as error:
        _, separator, advice = str(error).partition("; ")
        raise typer.BadParameter(f"expected [HOST:]PORT, got {text!r}{separator}{advice}", param_hint=option) from error
    return "127.0.0.1" if host == "localhost" else host, port


def join_commands(job: str, host: str, port: int) -> list[str]:
    """Return the commands that join a server listening on `host`.

    For a server on all addresses there are two: one for this machine, one with this machine's address for others.

    >>> join_commands("digits", "::1", 8470)
    ['flcore client digits --name NAME --server [::1]:8470 --insecure']
    """
    if _is_unspecified(host):
        here = _join_command(job, "localhost", port, "--insecure")
        return [here, _join_command(job, _outgoing_address(), port, "--insecure-remote")]
    shown = "localhost" if host == "127.0.0.1" else host
    return [_join_command(job, shown, port, "--insecure" if is_loopback(host) else "--insecure-remote")]


def kit_command(job: str, host: str, port: int) -> str:
    """Return the command that joins a server with a kit. It has the server's address if a new kit has another port.

    >>> kit_command("digits", "fl.example.org", 8470), kit_command("digits", "fl.example.org", 9000)
    ('flcore client digits --kit NAME', 'flcore client digits --kit NAME --server fl.example.org:9000')
    """
    command = f"flcore client {shlex.quote(job)} --kit NAME"
    return command if port == DEFAULT_PORT else f"{command} --server {join_address(host, port)}"


def agent_commands(host: str, port: int) -> list[str]:
    """Return the commands with which the sites of a standing federation join in plaintext (see `join_commands`).

    >>> agent_commands("127.0.0.1", 8470)
    ['flcore client --name NAME --server localhost:8470 --insecure']
    """
    return [command.replace("client '' ", "client ") for command in join_commands("", host, port)]


def agent_kit_command(host: str, port: int) -> str:
    """Return the command with which a site joins a standing federation with a kit (see `kit_command`).

    >>> agent_kit_command("fl.example.org", 8470)
    'flcore client --kit NAME'
    """
    return kit_command("", host, port).replace("client '' ", "client ")


def _join_command(job: str, host: str, port: int, plaintext: str) -> str:
    return f"flcore client {shlex.quote(job)} --name NAME --server {join_address(host, port)} {plaintext}"


def _is_unspecified(host: str) -> bool:
    """Whether a server listens on all of this machine's addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _outgoing_address() -> str:
    """Return the address from which this machine reaches others, or its host name. Sends no packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # The address is reserved for documentation (RFC 5737). Connecting a UDP socket only chooses a route.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
