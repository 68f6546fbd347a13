"""The address of a server as clients type it, and what else they have to type with it."""

import ipaddress
import shlex
import socket

LOOPBACK = ("127.0.0.1", "localhost")


def join_commands(job: str, host: str, port: int) -> list[str]:
    """Return what a client types to join a server that listens on `host`, a line for each place where it may be.

    A server on all addresses is joined from this machine, and from others by this machine's address.

    >>> join_commands("digits", "::1", 8470)
    ['flcore client digits --name NAME --server [::1]:8470 --insecure']
    """
    if _is_unspecified(host):
        here = _join_command(job, "localhost", port, "--insecure")
        return [here, _join_command(job, _outgoing_address(), port, "--insecure-remote")]
    shown = "localhost" if host in LOOPBACK else host
    return [_join_command(job, shown, port, "--insecure" if _is_loopback(host) else "--insecure-remote")]


def _join_command(job: str, host: str, port: int, plaintext: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"flcore client {shlex.quote(job)} --name NAME --server {shown}:{port} {plaintext}"


def _is_unspecified(host: str) -> bool:
    """Whether a server listens on all of this machine's addresses."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _outgoing_address() -> str:
    """Return the address from which this machine reaches others, or its name; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation: choosing a route takes no packet
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
