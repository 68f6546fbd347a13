"""Shared by gRPC server and client: names of calls and metadata, channel options, addresses, the rule for plaintext."""

import ipaddress

from flcore_transport.errors import InsecureAddress
from flcore_transport.framing import MAX_PIECE_BYTES

SERVICE = "flcore.transport.v1.Transport"
REFUSAL_METADATA = "flcore-refusal-bin"
SESSION_METADATA = "flcore-session-bin"
"""The session's secret, sent with all calls but `Session` and `Ask`. Without a valid one a call ends unread."""

CLIENT_METADATA = "flcore-client-bin"
"""The name of the client that joins, sent with `Session`. A client that may not join is refused before it is read."""

JOB_METADATA = "flcore-job-bin"
"""The id of the job that a call is for, on a server that hosts several. Without it a call is for the first service."""

MAX_CONNECTIONS = 1_024
"""The most connections of a server, unless it is told another number. A client has one, and one for each transfer of a
large payload."""

CONNECTION_BYTES = 96 << 10
"""The most memory that an idle connection over TLS takes, its handshake included: buffers of gRPC and BoringSSL."""

MAX_PENDING_JOINS = 8
"""The most joins that a server reads at the same time."""

UNAUTHENTICATED_BYTES = MAX_PENDING_JOINS * MAX_PIECE_BYTES
"""The most memory that unauthenticated calls hold: each an incomplete message of the largest size."""

TOO_MANY_JOINS = "too many clients join at the same time: retry"

TOO_MANY_CALLS = "this client has too many calls, or too many were refused: retry later"

MAX_STREAMS = 16
"""The most calls of one connection at a time."""

MAX_METADATA_BYTES = 8 << 10
"""The largest metadata of a call, headers included. A refusal's reason takes up to 4 KB of it."""

KEEPALIVE_MS = 20_000
"""Milliseconds of silence after which an end sends a ping. Below the idle timeouts of common NATs and firewalls."""

KEEPALIVE_TIMEOUT_MS = 10_000
"""Milliseconds after which an end that has not answered a ping is taken for lost."""

OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_PIECE_BYTES),
    ("grpc.max_send_message_length", MAX_PIECE_BYTES),
    # The bandwidth probe grows a stream's HTTP/2 window to tens of megabytes, which would defeat our memory bound. Each
    # end has a fixed window instead (`grpc.http2.lookahead_bytes`).
    ("grpc.http2.bdp_probe", 0),
    # A piece fits into one frame, instead of 130 frames of the default 16 KiB.
    ("grpc.http2.max_frame_size", MAX_PIECE_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # Equal, because between the two gRPC refuses some calls at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # An end that vanished (power failure, dropped route) is detected after 20 s + 10 s. Pings are also sent without
    # calls and without data, because an idle session has neither.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `"host:port"`, or raise `ValueError`. An IPv6 address has brackets.

    >>> split_address("localhost:8080"), split_address("[::1]:8080")
    (('localhost', 8080), ('::1', 8080))
    >>> split_address("::1:8080")
    Traceback (most recent call last):
    ValueError: expected HOST:PORT, got '::1:8080'; an IPv6 address stands in brackets: [::1]:8080
    """
    host, separator, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if "://" in address:
        raise ValueError(f"expected HOST:PORT, got {address!r}; leave out what stands before the host")
    if not separator or not bare or not port.isdecimal() or int(port) > 65_535 or set(bare) & set("[]/@ "):
        raise ValueError(f"expected HOST:PORT, got {address!r}")
    if ":" in bare and not is_bracketed:
        right = f"[{host}]:{port}" if _is_ipv6(host) else f"[{address}]:PORT"
        raise ValueError(f"expected HOST:PORT, got {address!r}; an IPv6 address stands in brackets: {right}")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """Return `"host:port"`, the form that `split_address` takes.

    >>> join_address("localhost", 8080), join_address("::1", 8080)
    ('localhost:8080', '[::1]:8080')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("fl.example.org")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(host: str) -> None:
    """Raise `InsecureAddress` unless `host` is this machine.

    >>> require_loopback("127.0.0.1")
    """
    if not is_loopback(host):
        raise InsecureAddress(
            f"{host} is not this machine, and plaintext may leave it only if you say so (--insecure-remote)"
        )
