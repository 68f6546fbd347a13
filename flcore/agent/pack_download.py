"""The download of an offered pack into a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from flcore_layout import ALIGNMENT, Layout, Segment, SegmentRange
from flcore_transport import ConnectionLost, Inbox, PieceError, Refused

from flcore.client.client import MAX_CORRUPT_PIECES, RETRIED_REFUSALS
from flcore.errors import PackError
from flcore.federation.lobby_messages import JobOffer
from flcore.job.pack_archive import MAX_PACK_BYTES


def download_pack(
    offer: JobOffer,
    layout: Layout,
    path: Path,
    fetch: Callable[[int], Iterator[bytes]],
    may_retry: Callable[[], bool],
) -> None:
    """Download a pack. The file appears when it is complete.

    Args:
        offer: The offer.
        layout: The payload's layout: one segment of bytes, padded with zeros.
        path: The file.
        fetch: Yields the pieces from one on.
        may_retry: Called when a call has failed; waits a while, and says whether to try again from the first missing
            piece.

    Raises:
        PackError: The pack is too large, or the layout is not that of the offered pack.
        TransportError: The download has failed.
        OSError: The file cannot be written.
    """
    padded = -(-offer.pack_nbytes // ALIGNMENT) * ALIGNMENT
    if not 0 < offer.pack_nbytes <= MAX_PACK_BYTES:
        raise PackError(f"expected a pack of up to {MAX_PACK_BYTES:,} bytes, the offer says {offer.pack_nbytes:,}")
    if [part.segments for part in layout.parts] != [(Segment("uint8", padded),)]:
        raise PackError(f"expected the offered pack as one segment of {padded:,} bytes, got another layout")
    partial = path.with_name(f".{path.name}.partial")
    file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _receive(Inbox(layout, _FileSink(file)), fetch, may_retry)
        os.ftruncate(file, offer.pack_nbytes)
        os.fsync(file)
        partial.replace(path)
    finally:
        os.close(file)
        with suppress(FileNotFoundError):
            partial.unlink()


def _receive(inbox: Inbox, fetch: Callable[[int], Iterator[bytes]], may_retry: Callable[[], bool]) -> None:
    corrupt = 0
    while not inbox.is_complete:
        try:
            for piece in fetch(inbox.received):
                inbox.accept(piece)
            inbox.finish()
        except PieceError:
            corrupt += 1
            if corrupt > MAX_CORRUPT_PIECES:
                raise
        except (ConnectionLost, Refused) as error:
            is_final = isinstance(error, Refused) and error.kind not in RETRIED_REFUSALS
            if is_final or not may_retry():
                raise


class _FileSink:
    def __init__(self, file: int) -> None:
        self._file = file

    def write(self, range_: SegmentRange, body: memoryview) -> None:
        offset = range_.first
        while body:
            written = os.pwrite(self._file, body, offset)
            body, offset = body[written:], offset + written
