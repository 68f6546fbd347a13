"""Hostile peers, one attack a process: `python -m tests.transport.hostile_peers ATTACK ADDRESS KEYS COUNT SECONDS`.

Each attack is `COUNT` large, goes to loopback only, and ends after `SECONDS`. KEYS is a directory with `client.pem`
(key and certificate) and `ca.pem`. What was done is printed as one line of JSON. Frames of HTTP/2 are made by hand:
gRPC's own client would not send them.
"""

import base64
import json
import resource
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from flcore_transport import Ask, FromServer, GrpcConnection, Join, TlsKeys, Welcome, split_address
from flcore_transport.control import encode_message
from flcore_transport.grpc_channel import CLIENT_METADATA, SERVICE, SESSION_METADATA, join_address

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
MAX_WINDOW = (1 << 31) - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def field(name: bytes, value: bytes) -> bytes:
    """A header field of HPACK, literal and without indexing (RFC 7541, 6.2.2), of less than 127 bytes each."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers(method: str) -> bytes:
    return b"".join(
        [
            field(b":method", b"POST"),
            field(b":scheme", b"https"),
            field(b":path", f"/{SERVICE}/{method}".encode()),
            field(b":authority", b"localhost"),
            field(b"content-type", b"application/grpc"),
            field(b"te", b"trailers"),
        ]
    )


CALL = headers("Session") + field(CLIENT_METADATA.encode(), base64.b64encode(b"mallory"))
"""A join of a client that may join, as its certificate says."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
WIDE = frame(WINDOW_UPDATE, 0, 0, (MAX_WINDOW - 65_535).to_bytes(4, "big"))
"""Lets the server send what it likes, so that only its own limits stop it."""


class Attack:
    """What all attacks share: the server's address, keys, an end, and the connections that are held."""

    def __init__(self, address: str, keys: Path, count: int, seconds: float) -> None:
        self.address, self.count, self.ends_at = split_address(address), count, time.monotonic() + seconds
        self._context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
        self._context.load_cert_chain(keys / "client.pem")
        self._context.set_alpn_protocols(["h2"])
        pair = (keys / "client.pem").read_bytes()
        self.keys = TlsKeys(pair, pair, (keys / "ca.pem").read_bytes())
        self.session: Iterator[FromServer] = iter(())
        self.held: list[socket.socket] = []
        self.did = {"opened": 0, "sent": 0, "sent_bytes": 0, "refused": 0, "closed_by_server": 0}

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    def tcp(self) -> socket.socket:
        connected = socket.create_connection(self.address, timeout=5)
        self.held.append(connected)
        self.did["opened"] += 1
        return connected

    def http2(self) -> ssl.SSLSocket | None:
        """Return a connection after its TLS handshake and HTTP/2 preface, or None where the server takes no more."""
        try:
            connected = self._context.wrap_socket(self.tcp(), server_hostname="localhost")
            self.held[-1] = connected
            connected.sendall(PREFACE + WIDE)
        except OSError:
            self.held.pop().close()
            self.did["refused"] += 1
            return None
        return connected

    def send(self, connected: socket.socket | None, data: bytes) -> bool:
        """Send bytes; return False once the server has closed the connection, or reads no more."""
        if connected is None:
            return False
        try:
            connected.settimeout(max(0.05, min(1.0, self.ends_at - time.monotonic())))
            connected.sendall(data)
        except OSError:
            return False
        self.did["sent"] += 1
        self.did["sent_bytes"] += len(data)
        return True

    def hold(self) -> None:
        """Keep all connections until the end, and count those that the server has closed by then."""
        while not self.is_over:
            time.sleep(0.05)
        for connected in self.held:
            connected.setblocking(False)
            try:
                with suppress(ssl.SSLWantReadError):
                    while connected.recv(1 << 16):
                        pass
                    self.did["closed_by_server"] += 1
            except BlockingIOError:
                pass
            except OSError:
                self.did["closed_by_server"] += 1
            connected.close()


def idle_handshakes(attack: Attack) -> None:
    """The first bytes of a ClientHello, and nothing more."""
    for _ in range(attack.count):
        with suppress(OSError):
            attack.tcp().sendall(b"\x16\x03\x01\x02\x00\x01\x00")


def idle_connections(attack: Attack) -> None:
    """Complete handshakes of TLS and HTTP/2, and no call."""
    for _ in range(attack.count):
        if attack.is_over:
            return
        attack.http2()


def half_sent_headers(attack: Attack) -> None:
    """HEADERS that do not end, half of the frame sent."""
    for _ in range(attack.count):
        attack.send(attack.http2(), frame(HEADERS, 0, 1, CALL + bytes(4096))[: 9 + len(CALL)])


def ping_flood(attack: Attack) -> None:
    """Pings as fast as they go; the answers are not read."""
    pings = frame(PING, 0, 0, bytes(8)) * 100
    connected = attack.http2()
    for _ in range(attack.count // 100):
        if attack.is_over:
            return
        if not attack.send(connected, pings):
            connected = attack.http2()


def rapid_resets(attack: Attack) -> None:
    """Calls that are reset as soon as they have begun (CVE-2023-44487)."""
    connected, stream = attack.http2(), 1
    for _ in range(attack.count // 10):
        if attack.is_over:
            return
        burst = b""
        for _ in range(10):
            burst += frame(HEADERS, END_HEADERS, stream, CALL) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            stream += 2
        if not attack.send(connected, burst):
            connected, stream = attack.http2(), 1


def many_streams(attack: Attack) -> None:
    """Calls that never send a message, all on one connection."""
    connected, stream = attack.http2(), 1
    for _ in range(attack.count // 10):
        if attack.is_over:
            return
        burst = b"".join(frame(HEADERS, END_HEADERS, stream + 2 * number, CALL) for number in range(10))
        stream += 20
        if not attack.send(connected, burst):
            connected, stream = attack.http2(), 1


def announced_4_gb(attack: Attack) -> None:
    """Messages that announce 4 GB, with as much of it as the window takes at once."""
    data = b"\x00\xff\xff\xff\xff" + bytes(16_379)
    for _ in range(attack.count // 16):
        connected = attack.http2()
        for stream in range(1, 33, 2):
            attack.send(connected, frame(HEADERS, END_HEADERS, stream, CALL) + frame(DATA, 0, stream, data))


def unfinished_joins(attack: Attack) -> None:
    """Joins of the largest message, which stop short of their last bytes; sixteen on each connection."""
    _unfinished(attack, CALL)


def unfinished_uploads(attack: Attack) -> None:
    """Upload requests of the largest message, with a session's secret, which stop short of their last bytes."""
    attack.session = GrpcConnection(join_address(*attack.address), keys=attack.keys).session(Join("mallory", "1"))
    welcome = next(attack.session)
    assert isinstance(welcome, Welcome)
    secret = base64.b64encode(welcome.session_secret.encode())
    _unfinished(attack, headers("Upload") + field(SESSION_METADATA.encode(), secret))


def unfinished_asks(attack: Attack) -> None:
    """Asks of the largest message, which stop short of their last bytes; sixteen on each connection."""
    _unfinished(attack, headers("Ask"))


def _unfinished(attack: Attack, call: bytes) -> None:
    start = b"\x00" + (4 << 20).to_bytes(4, "big")
    for _ in range(attack.count // 16):
        connected = attack.http2()
        for stream in range(1, 33, 2):
            attack.send(connected, frame(HEADERS, END_HEADERS, stream, call) + frame(DATA, 0, stream, start))
        for _ in range(250):
            for stream in range(1, 33, 2):
                if attack.is_over or not attack.send(connected, frame(DATA, 0, stream, bytes(16_384))):
                    break


def join_flood(attack: Attack) -> None:
    """Complete joins of one identity, as fast as they go, each on a new stream."""
    _flood(attack, CALL, encode_message(Join("mallory", "1", bytes(8192))))


def ask_flood(attack: Attack) -> None:
    """Complete asks of one identity, as fast as they go, each on a new stream."""
    _flood(attack, headers("Ask"), encode_message(Ask(bytes(8192))))


def _flood(attack: Attack, call: bytes, message: bytes) -> None:
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    connected, stream = attack.http2(), 1
    for _ in range(attack.count):
        if attack.is_over:
            return
        sent = frame(HEADERS, END_HEADERS, stream, call) + frame(DATA, END_STREAM, stream, body)
        stream += 2
        if stream > 400 or not attack.send(connected, sent):
            connected, stream = attack.http2(), 1


ATTACKS: dict[str, Callable[[Attack], None]] = {
    attack.__name__: attack
    for attack in (
        idle_handshakes,
        idle_connections,
        half_sent_headers,
        ping_flood,
        rapid_resets,
        many_streams,
        announced_4_gb,
        unfinished_joins,
        unfinished_uploads,
        unfinished_asks,
        join_flood,
        ask_flood,
    )
}


def main() -> None:
    """Run one attack."""
    name, address, keys, count, seconds = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = Attack(address, Path(keys), int(count), float(seconds))
    ATTACKS[name](attack)
    attack.hold()
    print(json.dumps(attack.did))


if __name__ == "__main__":
    main()
