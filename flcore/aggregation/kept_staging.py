"""Staging of updates whose files outlive the process: what a receipt promises, and what a restarted server reads.

The files of an update lie in one directory, `CALL-CLIENT-KEY-RANDOM`: the call of the workflow that asked for it, its
client, and the first digits of the digest that identifies the upload. Beside the segments' Arrow streams and the
description (see `DiskStore`) it has `checksums`: 8 bytes for each piece, in order. After a crash, the pieces up to the
first one that differs from its checksum are there, and the upload goes on behind them.

A piece in memory is written to its file as well. The system is told to begin with the writing at once, so that the sync
at the end of an upload waits for its last pieces only.
"""

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import xxhash
from flcore_layout import SegmentRange
from flcore_transport import Buffer
from flcore_transport.piece_format import body_bytes

from flcore.aggregation.memory_quota import MemoryQuota
from flcore.aggregation.staging import DESCRIPTION, UNSEALED_DESCRIPTION, DiskStore, attribute_disk_errors
from flcore.disk_errors import named
from flcore.errors import StagingError
from flcore.model.atomic_replace import create_directory, sync_directory, sync_file
from flcore.model.wire_format import WireFormat

CHECKSUMS = "checksums"
CHECKSUM_BYTES = 8
KEY_DIGITS = 16
DESCRIPTIONS = (DESCRIPTION, UNSEALED_DESCRIPTION)


class KeptStore(DiskStore):
    """The chunks of one update in files that stay: `seal` returns when they are on the disk, and then they are kept.

    Args:
        directory: The directory of the update.
        client: The client's name, for errors.
    """

    def __init__(self, directory: Path, client: str) -> None:
        super().__init__(directory, client)
        self._appended = 0
        # Sealed by an earlier process that may have died before the names were synced: `seal` syncs them again.
        self._is_sealed = (directory / DESCRIPTION).exists()
        self._is_synced = False

    def append(self, chunk: SegmentRange, body: Buffer) -> None:
        """Write the next chunk and its checksum."""
        super().append(chunk, body)
        path = self._directory / CHECKSUMS
        with self._attribute_errors(), named(path):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                written = os.pwrite(file, xxhash.xxh3_64_digest(body), self._appended * CHECKSUM_BYTES)
                if written != CHECKSUM_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)
        self._appended += 1

    def seal(self) -> None:
        """Sync the files, then name the description, then sync the names. Idempotent.

        In this order a directory with the description has all of the update, whenever the power fails.
        """
        if self._is_synced:
            return
        with self._attribute_errors():
            for path in self._directory.iterdir():
                sync_file(path)
            if not self._is_sealed:
                self._rename_description()
            sync_directory(self._directory)
            sync_directory(self._directory.parent)
        self._is_sealed = self._is_synced = True

    def discard(self) -> None:
        """Remove the files, unless they were sealed."""
        if not self._is_sealed:
            super().discard()

    def release(self) -> None:
        """Let `discard` remove the files, although they were sealed: the update is not on record."""
        self._is_sealed = False

    def recover(self, chunks: Sequence[SegmentRange]) -> int:
        """Return how many chunks, counted from the first, are as they were written. The next one is appended there."""
        self._appended = 0
        checksums = b""
        with suppress(OSError):  # without them no piece can be verified: the upload begins anew
            checksums = (self._directory / CHECKSUMS).read_bytes()
        for number, chunk in enumerate(chunks):
            expected = checksums[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES]
            try:
                body = self.read_bytes(chunk, 0, body_bytes(chunk.dtype, chunk.count))
            except StagingError:
                break
            if xxhash.xxh3_64_digest(body) != expected:
                break
            self._appended += 1
        return self._appended

    def _after_write(self, file: int, offset: int, nbytes: int) -> None:
        # Linux begins to write dirty pages of the range, and drops none of them: they are not clean yet.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_DONTNEED)


class KeptStaging:
    """Stages the updates of one call of the workflow in `directory`, beside those of other calls.

    Args:
        quota: The memory that all staged updates of the server share.
        directory: The directory of all kept updates. It is created if missing.
        call: The number of the call.
    """

    keeps_files: ClassVar[bool] = True

    def __init__(self, quota: MemoryQuota, directory: Path, call: int) -> None:
        self.quota, self._directory, self._call = quota, directory, call
        self._lock = threading.Lock()
        # What an earlier process left of this call. Each is taken once: a later upload of the same key is a new one.
        # One without a description was being created, and has no pieces.
        found = _updates_of(directory, [call])
        self._found = [path for path in found if any((path / name).exists() for name in DESCRIPTIONS)]

    def create_store(self, wire_format: WireFormat, client: str, weight: float, upload_key: str) -> KeptStore:
        """Create the files of a new update. Raises `StagingError`."""
        name = f"{self._prefix(client, upload_key)}{secrets.token_hex(4)}"
        with attribute_disk_errors(client, self._directory):
            create_directory(self._directory, 0o700)  # updates are their clients' and the server's alone
        store = KeptStore(self._directory / name, client)
        store.create(wire_format, weight)
        return store

    def find_store(self, client: str, upload_key: str) -> KeptStore | None:
        """Return the files that an earlier process left of an upload, or None."""
        prefix = self._prefix(client, upload_key)
        with self._lock:
            found = next((path for path in self._found if path.name.startswith(prefix)), None)
            if found is not None:
                self._found.remove(found)
        return None if found is None else KeptStore(found, client)

    def open_store(self, directory: str, client: str) -> KeptStore:
        """Return the files of an update that was committed."""
        with self._lock:
            self._found = [path for path in self._found if path.name != directory]
        return KeptStore(self._directory / directory, client)

    def _prefix(self, client: str, upload_key: str) -> str:
        return f"{self._call}-{client}-{upload_key[:KEY_DIGITS]}-"


def remove_kept_updates(directory: Path, calls: Sequence[int]) -> None:
    """Remove the files of the updates of some calls."""
    for path in _updates_of(directory, calls):
        shutil.rmtree(path, ignore_errors=True)


def _updates_of(directory: Path, calls: Sequence[int]) -> list[Path]:
    """Return the directories of the updates of some calls, sorted.

    Not by `glob`: Python caches each of its patterns, and every round has another one.
    """
    wanted = {str(call) for call in calls}
    if not wanted or not directory.exists():
        return []
    return sorted(path for path in directory.iterdir() if path.name.partition("-")[0] in wanted)
