"""The packs of a federation: one file for each digest, which appears when all of its bytes are there and verified.

    packs/<sha256>.flpack     a pack
    packs/<sha256>.partial    the beginning of one that is being sent

Packs that no job has, unfinished ones included, are limited in bytes: one that nobody has touched for a while gives way
to a new one. So does one of the caller who has most of the bytes, if another caller would have less than that one with
the new pack: nobody can take all the room. A pack that a job has stays until its last job is deleted.
"""

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flcore_transport import Refused

from flcore.model.atomic_replace import create_directory, sync_directory, sync_file

MAX_PACK_BYTES = 64 << 20
MAX_PENDING_BYTES = 4 * MAX_PACK_BYTES
"""The most bytes of packs that no job has, and of unfinished ones."""

IDLE_S = 60.0
"""A pending pack that was not touched for this long gives way to a new one."""

READ_BYTES = 1 << 20


@dataclass
class _PendingPack:
    """A pack that no job has. `is_busy` while a call works on its files.

    Attributes:
        nbytes: Its size, which counts from its first byte on, and which its first call fixes.
        received: How many bytes are there.
        touched: The time of the last call.
        owner: Who has sent it first; empty after a restart.
        is_size_known: False for an unfinished one after a restart, until the next call. What is there counts.
    """

    nbytes: int
    received: int
    touched: float
    owner: str = ""
    is_size_known: bool = True
    is_complete: bool = False
    is_busy: bool = True


class PackStore:
    """The directory of packs. Thread-safe; its lock is not held during I/O.

    Args:
        directory: The directory. It is created if missing.
        used: The digests of the packs that jobs have.
        max_pack_bytes: The largest pack. Default: 64 MiB.
        max_pending_bytes: The limit for packs that no job has. Default: 256 MiB.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        directory: Path,
        used: Collection[str],
        max_pack_bytes: int = MAX_PACK_BYTES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._clock = directory, clock
        self.max_pack_bytes, self._max_pending_bytes = max_pack_bytes, max_pending_bytes
        self._changed = threading.Condition()
        self._pending: dict[str, _PendingPack] = {}
        self._used = set(used)
        self._holders: Counter[str] = Counter()
        create_directory(directory)
        self._find_pending()

    def _find_pending(self) -> None:
        """Find what an earlier process left."""
        now = self._clock()
        for path in sorted(self._directory.iterdir()):
            size = path.stat().st_size
            if path.suffix == ".partial":
                self._pending[path.stem] = _PendingPack(size, size, now, is_size_known=False, is_busy=False)
            elif path.suffix == ".flpack" and path.stem not in self._used:
                self._pending[path.stem] = _PendingPack(size, size, now, is_complete=True, is_busy=False)

    def path(self, digest: str) -> Path:
        """Return the path of a pack."""
        return self._directory / f"{digest}.flpack"

    def put(self, digest: str, nbytes: int, offset: int, body: bytes, owner: str = "") -> int:
        """Take bytes of a pack from `offset` on. Bytes at another place than the next one are ignored.

        Args:
            digest: The SHA-256 of the pack.
            nbytes: The pack's size, the same in all calls.
            offset: The place of the bytes.
            body: The bytes.
            owner: Who sends them. Default: nobody in particular.

        Returns:
            How many bytes of the pack are there now.

        Raises:
            Refused: The pack is too large, too many are pending, an earlier call gave another size, or the complete
                pack has another digest.
        """
        if nbytes > self.max_pack_bytes:
            raise Refused(
                "too-large",
                f"expected a pack of at most {self.max_pack_bytes >> 20}MiB, got one of {nbytes:,} bytes; leave data "
                "and models out of the job's directory",
            )
        with self._changed:
            pack, evicted = self._claim(digest), list[str]()
            if digest in self._used:
                return nbytes
            if pack is None:
                evicted = self._make_room(nbytes, owner)
                pack = self._pending[digest] = _PendingPack(nbytes, 0, self._clock(), owner)
            elif not pack.is_size_known:
                evicted = self._fix_size(pack, nbytes, owner)
        try:
            for other in evicted:
                self._remove(other)
            if pack.nbytes != nbytes:
                raise Refused(
                    "bad-pack", f"expected the pack's size of {pack.nbytes:,} bytes as before, got {nbytes:,} bytes"
                )
            if not pack.is_complete:
                self._append(pack, digest, offset, body)
        finally:
            self._release(pack)
        return pack.received

    def _append(self, pack: _PendingPack, digest: str, offset: int, body: bytes) -> None:
        """Append a part; with the last one, verify the pack and give it its name."""
        partial = self._partial(digest)
        if pack.received == offset and body:
            if offset + len(body) > pack.nbytes:
                raise Refused("bad-pack", f"expected a pack of {pack.nbytes:,} bytes, got {offset + len(body):,} bytes")
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                pack.received += os.pwrite(file, body, offset)
            finally:
                os.close(file)
        if pack.received >= pack.nbytes:
            if (found := file_digest(partial)) != digest:
                partial.unlink()
                pack.received = 0
                raise Refused("bad-pack", f"expected a pack with the SHA-256 {digest}, got {found}; send it again")
            sync_file(partial)
            partial.rename(self.path(digest))
            sync_directory(self._directory)
            pack.is_complete = True

    @contextmanager
    def holding(self, digest: str) -> Iterator[Path]:
        """A block in which a complete pack stays, also if no job has it. Raises `Refused` if it is not there.

        Several calls may hold a pack at once, and none waits for another one.
        """
        with self._changed:
            self._wait_until_free(digest)
            pack = self._pending.get(digest)
            if digest not in self._used and not (pack and pack.is_complete):
                raise no_pack(digest)
            self._holders[digest] += 1
        try:
            yield self.path(digest)
        finally:
            with self._changed:
                self._holders[digest] -= 1
                if not self._holders[digest]:
                    del self._holders[digest]
                if pack is not None:
                    pack.touched = self._clock()

    def add_use(self, digest: str) -> None:
        """A job has this pack now. Called in the block of `holding`."""
        with self._changed:
            self._used.add(digest)
            self._pending.pop(digest, None)
            self._changed.notify_all()

    def end_use(self, digest: str) -> None:
        """No job has this pack any more: remove it, unless a submission of it is under way."""
        with self._changed:
            if digest not in self._used:
                return
            self._used.discard(digest)
            is_held = self._holders[digest] > 0
            size = self.path(digest).stat().st_size if is_held else 0
            self._pending[digest] = _PendingPack(size, size, self._clock(), is_complete=True, is_busy=not is_held)
        if not is_held:
            self._remove(digest)

    def _claim(self, digest: str) -> _PendingPack | None:
        """Wait until no other call works on a pack, and claim it; None if it is not pending. With the lock."""
        self._wait_until_free(digest)
        pack = self._pending.get(digest)
        if pack is not None:
            pack.is_busy = True
        return pack

    def _wait_until_free(self, digest: str) -> None:
        self._changed.wait_for(lambda: (found := self._pending.get(digest)) is None or not found.is_busy)

    def _release(self, pack: _PendingPack) -> None:
        with self._changed:
            pack.is_busy, pack.touched = False, self._clock()
            self._changed.notify_all()

    def _fix_size(self, pack: _PendingPack, nbytes: int, owner: str) -> list[str]:
        """Fix the size of a claimed pack that an earlier process left. Returns what gives way. With the lock."""
        evicted = list[str]()
        if nbytes >= pack.received:
            try:
                evicted = self._make_room(nbytes - pack.received, owner)
            except BaseException:
                pack.is_busy = False
                self._changed.notify_all()
                raise
            pack.nbytes, pack.owner, pack.is_size_known = nbytes, owner, True
        return evicted

    def _make_room(self, nbytes: int, owner: str) -> list[str]:
        """Claim packs until a new one fits in their place, and return them; or raise `Refused`. With the lock."""
        now, evicted = self._clock(), list[str]()
        total = sum(pack.nbytes for pack in self._pending.values()) + nbytes
        held = Counter({owner: nbytes})
        for pack in self._pending.values():
            held[pack.owner] += pack.nbytes
        for digest, pack in sorted(self._pending.items(), key=lambda item: item[1].touched):
            gives_way = now - pack.touched >= IDLE_S or (pack.owner != owner and _has_most(held, pack.owner, owner))
            is_in_use = pack.is_busy or digest in self._holders
            if total > self._max_pending_bytes and gives_way and not is_in_use:
                total, held[pack.owner] = total - pack.nbytes, held[pack.owner] - pack.nbytes
                evicted.append(digest)
        if total > self._max_pending_bytes:
            raise Refused(
                "busy",
                f"{len(self._pending)} packs without a job take the {self._max_pending_bytes >> 20}MiB that the server "
                "has for them; try again in a minute",
            )
        for digest in evicted:
            self._pending[digest].is_busy, self._pending[digest].nbytes = True, 0
        return evicted

    def _remove(self, digest: str) -> None:
        """Remove the files of a pack that this call has claimed."""
        self._partial(digest).unlink(missing_ok=True)
        self.path(digest).unlink(missing_ok=True)
        with self._changed:
            self._pending.pop(digest, None)
            self._changed.notify_all()

    def _partial(self, digest: str) -> Path:
        return self._directory / f"{digest}.partial"


def no_pack(digest: str) -> Refused:
    """Return the refusal of a pack that the caller has not sent."""
    return Refused("no-pack", f"the server has no pack with the SHA-256 {digest}; send it first")


def _has_most(held: Counter[str], holder: str, caller: str) -> bool:
    """Whether a holder of bytes has the most of all, and more than a caller."""
    return held[holder] == max(held.values()) > held[caller]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
