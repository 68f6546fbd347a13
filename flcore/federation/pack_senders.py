"""Which lead has sent all bytes of which pack. Its digest alone, which others may know, gives nobody a pack.

The server stores a pack once for all leads. So the bytes of each lead are hashed as they come. This knowledge ends with
the process: a lead then sends its pack again, unless it has a job of it.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from flcore_transport import Refused

MAX_UPLOADS = 1_000
MAX_SENT = 10_000
"""The oldest are forgotten first: their leads send their packs again."""

Key = tuple[str, str]
"""The lead's identity, and the digest of the pack."""


@dataclass
class _Upload:
    """The bytes that a lead has sent: their number, and their digest so far."""

    received: int = 0
    hash: Any = field(default_factory=hashlib.sha256)


class PackSenders:
    """The uploads of all leads. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: OrderedDict[Key, _Upload] = OrderedDict()
        self._sent: OrderedDict[Key, None] = OrderedDict()

    def has_sent(self, owner: str, digest: str) -> bool:
        """Whether a lead has sent all bytes of a pack."""
        with self._lock:
            return (owner, digest) in self._sent

    def received(self, owner: str, digest: str) -> int:
        """Return how many bytes of a pack a lead has sent, up to the last one."""
        with self._lock:
            upload = self._uploads.get((owner, digest))
            return 0 if upload is None else upload.received

    def add(self, owner: str, digest: str, nbytes: int, offset: int, body: bytes) -> int:
        """Take bytes from `offset` on. Bytes at another place than the next one are ignored.

        Returns:
            How many bytes the lead has sent.

        Raises:
            Refused: All bytes are there, and are another pack.
        """
        key = owner, digest
        with self._lock:
            upload = self._uploads.setdefault(key, _Upload())
            self._uploads.move_to_end(key)
            if body and upload.received == offset:
                upload.hash.update(body)
                upload.received += len(body)
            if upload.received >= nbytes:
                del self._uploads[key]
                if (found := upload.hash.hexdigest()) != digest:
                    raise Refused("bad-pack", f"expected a pack with the SHA-256 {digest}, got {found}; send it again")
                self._sent[key] = None
                self._sent.move_to_end(key)
            for entries, limit in ((self._uploads, MAX_UPLOADS), (self._sent, MAX_SENT)):
                while len(entries) > limit:
                    entries.popitem(last=False)
            return upload.received

    def begin_anew(self, owner: str, digest: str) -> None:
        """Forget what a lead has sent of a pack: the server has lost it."""
        with self._lock:
            self._uploads.pop((owner, digest), None)
            self._sent.pop((owner, digest), None)
