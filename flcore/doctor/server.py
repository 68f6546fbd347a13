"""A server from where a client or lead stands: reachable, its clock, the round trip and the rates to it."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flcore_transport import Ask, ConnectionLost, Refused, Reply, TransportError, split_address

from flcore.doctor.result import CheckResult
from flcore.federation.messages import MAX_BODY_BYTES, Ping, Pong, RequestContent
from flcore.job.messages import MalformedMessage, parse_content
from flcore.text import printable

CALL_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 5.0

ROUND_TRIPS = 5
"""How often a small ping is sent; the fastest one counts."""

SLOW_ROUND_TRIP_S = 0.5

RATE_CALLS = 4
"""The most calls of 1 MiB in each direction."""

RATE_S = 1.0
"""The measurement of a rate ends after this time. A call that has begun is not cut off."""

SLOW_BYTES_PER_S = 1e6

CLOCK_WARNING_S, CLOCK_FAILURE_S = 2.0, 300.0
"""Clocks that differ by more: lines of logs do not match; certificates are not valid yet, or no more, at one end."""

REVOKED = ("revoked", "expired", "unmapped", "not-allowed")
"""Kinds of refusals of a certificate."""

Clock = Callable[[], float]


class Connection(Protocol):
    """A connection to the server: a `GrpcConnection`, or a fake in tests."""

    address: str

    def ask(self, ask: Ask, timeout_s: float | None = None) -> Reply:
        """Send a request, and return its reply."""
        ...


@dataclass(frozen=True)
class Pinged:
    """What one small ping has found.

    Attributes:
        round_trip_s: Seconds from the call to its reply.
        clock_ahead_s: How far the server's clock is ahead of this machine's, give or take half a round trip. None: the
            server does not say.
    """

    round_trip_s: float
    clock_ahead_s: float | None


def check_port_reachable(address: str, connect: Callable[..., socket.socket] = socket.create_connection) -> CheckResult:
    """Check that a TCP connection to a server can be opened.

    Args:
        address: The server's address, HOST:PORT.
        connect: Opens a connection.
    """
    begun, shown = time.monotonic(), printable(address, 200)
    try:
        connect(split_address(address), timeout=CONNECT_TIMEOUT_S).close()
    except UnicodeError:
        found = f"{shown} is no address: a part of the host's name is empty, or has more than 63 characters"
        return CheckResult("port", "failed", found, "correct the host's name (--server)")
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        advice = "does the server run, is the address right, and does the firewall let its port pass?"
        return CheckResult("port", "failed", f"{shown} cannot be reached: {reason}", advice)
    elapsed_ms = (time.monotonic() - begun) * 1e3
    return CheckResult("port", "ok", f"{address} can be reached: a connection in {elapsed_ms:.1f} ms")


def check_server(connection: Connection, clock: Clock = time.monotonic, now: Clock = time.time) -> list[CheckResult]:
    """Check handshake, round trip, clock and rates.

    Args:
        connection: The connection. Its first call does the handshake.
        clock: Seconds that never go back.
        now: Seconds since the epoch, by this machine's clock.

    Returns:
        One result if there is no answer, else one for each of them.
    """
    try:
        pings = [_ping(connection, clock, now) for _ in range(ROUND_TRIPS)]
    except Refused as error:
        found = f"{connection.address} refused the request ({printable(error.kind, 50)}): {printable(str(error))}"
        advice = "ask the federation's operator for a new kit" if error.kind in REVOKED else "see the error's text"
        return [CheckResult("server", "failed", found, advice)]
    except (ConnectionLost, TransportError, MalformedMessage) as error:
        advice = "does the server run, with TLS if this is a kit's, and is it of this version of flcore?"
        return [CheckResult("server", "failed", printable(str(error)), advice)]
    best = min(pings, key=lambda ping: ping.round_trip_s)
    results = [_round_trip_result(connection.address, best), _clock_result(best)]
    if best.clock_ahead_s is not None:
        results += [check_rate(connection, "download", clock), check_rate(connection, "upload", clock)]
    return results


def check_rate(connection: Connection, direction: str, clock: Clock = time.monotonic) -> CheckResult:
    """Measure the rate to a server that answers pings: 4 MiB, or what passes in a second.

    Args:
        connection: The connection.
        direction: "download" or "upload".
        clock: Seconds that never go back.
    """
    nbytes, body = (MAX_BODY_BYTES, b"") if direction == "download" else (0, bytes(MAX_BODY_BYTES))
    moved, begun = 0, clock()
    try:
        while moved < RATE_CALLS * MAX_BODY_BYTES and (not moved or clock() - begun < RATE_S):
            _, reply = _ask(connection, nbytes, body)
            moved += MAX_BODY_BYTES if direction == "upload" else len(reply)
            if not moved:
                break
    except (TransportError, MalformedMessage) as error:
        return CheckResult(direction, "failed", printable(str(error)), "check the network, and the server's log")
    elapsed_s = max(clock() - begun, 1e-9)
    rate = moved / elapsed_s
    found = f"{rate / 1e6:,.1f} MB/s: {moved >> 20} MiB in {elapsed_s:.2f} s, on one connection"
    if rate >= SLOW_BYTES_PER_S:
        return CheckResult(direction, "ok", found)
    advice = "a large model takes long: raise deadline_s and stall_timeout_s, or send a narrower dtype (wire)"
    return CheckResult(direction, "warning", found, advice)


def _ping(connection: Connection, clock: Clock, now: Clock) -> Pinged:
    asked_at, begun = now(), clock()
    try:
        pong, _ = _ask(connection, 0, b"")
    except Refused as error:
        if error.kind not in ("no-requests", "malformed"):  # of a server of an earlier version, which has answered
            raise
        return Pinged(clock() - begun, None)
    round_trip_s = clock() - begun
    return Pinged(round_trip_s, pong.time_s - (asked_at + round_trip_s / 2))


def _ask(connection: Connection, nbytes: int, body: bytes) -> tuple[Pong, bytes]:
    ask = Ask(RequestContent(request=Ping(nbytes=nbytes)).to_bytes(), body)
    reply = connection.ask(ask, CALL_TIMEOUT_S)
    return parse_content(Pong, reply.content), reply.body


def _round_trip_result(address: str, best: Pinged) -> CheckResult:
    found = f"{address} answers; round trip {best.round_trip_s * 1e3:.1f} ms, the fastest of {ROUND_TRIPS}"
    if best.round_trip_s < SLOW_ROUND_TRIP_S:
        return CheckResult("server", "ok", found)
    return CheckResult("server", "warning", found, "check the network between here and the server: VPN, proxy, load")


def _clock_result(best: Pinged) -> CheckResult:
    if best.clock_ahead_s is None:
        found = "not measured: the server is of an earlier version, and does not tell its time"
        return CheckResult("clock", "warning", found, "compare `date -u` at both ends, or upgrade the server")
    ahead_s = best.clock_ahead_s
    found = (
        f"the server's clock is {abs(ahead_s):.2f} s {'ahead' if ahead_s >= 0 else 'behind'}, "
        f"± {best.round_trip_s / 2:.2f} s"
    )
    difference_s = abs(ahead_s) - best.round_trip_s / 2
    advice = "synchronize both clocks (NTP, chrony): validity of certificates and times of logs are judged by them"
    if difference_s > CLOCK_FAILURE_S:
        return CheckResult("clock", "failed", found, advice)
    if difference_s > CLOCK_WARNING_S:
        return CheckResult("clock", "warning", found, advice)
    return CheckResult("clock", "ok", found)
