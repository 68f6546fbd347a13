"""A bare grpcio stream of raw bytes without checks: the baseline of flcore's own streams.

The client is synchronous and the server runs on asyncio, as in flcore. All pieces are the same object.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

SERVICE = "bare.Stream"
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
ACKNOWLEDGEMENT = b"a"


def serve_bare(listening: Callable[[str], None]) -> None:
    """Serve for ever. Calls `listening` with the address."""
    asyncio.run(_serve(listening))


class BareClient:
    """A connection to a bare server. Methods transfer `nbytes` in pieces of `piece_bytes`, and return the seconds."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
        self._acknowledged: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            f"/{SERVICE}/Acknowledged"
        )
        self._counted: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(f"/{SERVICE}/Counted")
        self._download: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(f"/{SERVICE}/Download")

    def upload(self, nbytes: int, piece_bytes: int) -> float:
        """Send without flow control of our own. At the end, the server returns the count of bytes."""
        started = time.perf_counter()
        (count,) = self._counted(iter(_pieces(nbytes, piece_bytes)), wait_for_ready=True)
        seconds = time.perf_counter() - started
        _require_all(int(count), nbytes)
        return seconds

    def upload_acknowledged(self, nbytes: int, piece_bytes: int, window: int) -> float:
        """Send with at most `window` unacknowledged pieces."""
        credit = threading.Semaphore(window)

        def sent() -> Iterator[bytes]:
            for data in _pieces(nbytes, piece_bytes):
                credit.acquire()
                yield data

        started = time.perf_counter()
        count = 0
        for _ in self._acknowledged(sent(), wait_for_ready=True):
            count += 1
            credit.release()
        seconds = time.perf_counter() - started
        _require_all(count, -(-nbytes // piece_bytes))
        return seconds

    def download(self, nbytes: int, piece_bytes: int) -> float:
        """Receive and discard."""
        started = time.perf_counter()
        count = sum(len(data) for data in self._download(f"{nbytes} {piece_bytes}".encode(), wait_for_ready=True))
        seconds = time.perf_counter() - started
        _require_all(count, nbytes)
        return seconds

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


async def _serve(listening: Callable[[str], None]) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Acknowledged": grpc.stream_stream_rpc_method_handler(_acknowledge),
        "Counted": grpc.stream_stream_rpc_method_handler(_count),
        "Download": grpc.unary_stream_rpc_method_handler(_send),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listening(f"127.0.0.1:{port}")
    await server.wait_for_termination()


async def _acknowledge(pieces: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for _piece in pieces:
        yield ACKNOWLEDGEMENT


async def _count(pieces: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    count = 0
    async for piece in pieces:
        count += len(piece)
    yield str(count).encode()


async def _send(request: bytes, _: Any) -> AsyncIterator[bytes]:
    nbytes, piece_bytes = map(int, request.split())
    for data in _pieces(nbytes, piece_bytes):
        yield data


def _pieces(nbytes: int, piece_bytes: int) -> Iterator[bytes]:
    """Yield `nbytes` bytes: the same full piece repeatedly, then the remainder."""
    full = bytes(piece_bytes)
    for _ in range(nbytes // piece_bytes):
        yield full
    if nbytes % piece_bytes:
        yield bytes(nbytes % piece_bytes)


def _require_all(received: int, expected: int) -> None:
    if received != expected:
        raise RuntimeError(f"received {received} of {expected}")
