"""The upload of a pack: in parts, resumed where the server has an earlier part, checked by its SHA-256 there."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from flcore_transport import TransportError

from flcore.federation.messages import MAX_BODY_BYTES, PackReceived, PutPack
from flcore.lead.server_calls import TRANSFER_GIVE_UP_S, TRANSFER_TIMEOUT_S, ServerCalls

MAX_STALLED_CALLS = 5
"""Parts in a row after which the server has no more than before. Another upload of the same pack explains a few."""

TransferObserver = Callable[[int, int], None]
"""Receives the bytes that are done, those that an earlier transfer has left included, and the bytes in all."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload_pack(calls: ServerCalls, path: Path, digest: str, observe: TransferObserver = lambda *_: None) -> None:
    """Send a pack, from the first byte on that the server lacks. A pack that it has costs one call.

    Args:
        calls: The calls to the server.
        path: The pack's file.
        digest: Its SHA-256.
        observe: Receives the progress. Default: nothing.

    Raises:
        Refused: The server does not take the pack.
        ConnectionLost: The server has been away for `TRANSFER_GIVE_UP_S`.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        nbytes = file.seek(0, 2)
        received = _put(calls, PutPack(digest=digest, nbytes=nbytes, offset=0), b"")
        stalled = 0
        while received < nbytes:
            observe(received, nbytes)
            file.seek(received)
            body = file.read(MAX_BODY_BYTES)
            before, received = received, _put(calls, PutPack(digest=digest, nbytes=nbytes, offset=received), body)
            stalled = stalled + 1 if received <= before else 0
            if stalled == MAX_STALLED_CALLS:
                raise TransportError(
                    f"the upload of {path.name}: expected the server to have more than {before:,} of {nbytes:,} bytes, "
                    f"got {received:,} after {stalled} parts; see the server's log"
                )
        observe(nbytes, nbytes)


def _put(calls: ServerCalls, request: PutPack, body: bytes) -> int:
    reply, _ = calls.call_until_answered(
        request, PackReceived, body, timeout_s=TRANSFER_TIMEOUT_S, give_up_after_s=TRANSFER_GIVE_UP_S
    )
    return reply.received
