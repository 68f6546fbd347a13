"""Files of certificates and keys: written atomically; only their owner can read keys.

A file is written under a hidden name in the same directory, synced, and then renamed. Readers see the old content or
the new one. A hidden file that a killed writer has left is removed by `remove_partial_files`.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from flcore.disk_sync import sync_directory
from flcore.errors import CertificateError
from flcore.regular_file import UnfitFile, open_descriptor

MAX_FILE_BYTES = 1 << 20
"""Far above every file of a few certificates; nothing larger is read."""

PRIVATE, PUBLIC = 0o600, 0o644
"""The modes of files with and without a key."""

PARTIAL_SUFFIX = ".partial"

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems without hard links, such as that of a USB stick."""


class FileStamp(NamedTuple):
    """The metadata by which two versions of a file differ, so that an unchanged file is not read again."""

    mtime_ns: int
    ctime_ns: int
    nbytes: int
    inode: int
    device: int


def file_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of a file; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileStamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)


def replace_file(path: Path, data: bytes, *, mode: int = PUBLIC) -> None:
    """Write a file, or replace it in one step. It is on the disk when this returns."""
    partial = _write_partial(path, data, mode)
    try:
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def create_file(path: Path, data: bytes, *, mode: int = PUBLIC) -> None:
    """Write a new file in one step. Raises `FileExistsError` where there is one, which is left as it is."""
    partial = _write_partial(path, data, mode)
    try:
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def _write_partial(path: Path, data: bytes, mode: int) -> Path:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    # O_EXCL: a link that somebody has put there is not followed. The mode holds from the first byte on.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def remove_partial_files(directory: Path) -> None:
    """Remove hidden files of killed writers. The caller holds the lock under which the directory is written."""
    for entry in directory.glob(f".*{PARTIAL_SUFFIX}"):
        with suppress(FileNotFoundError):
            entry.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is created if needed. Waits while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file of up to `max_bytes`, or raise `CertificateError`."""
    return _read(path, max_bytes)[0]


def read_private_file(path: Path) -> bytes:
    """Return the content of a file with a key. Raises `CertificateError` where others than its owner may read it."""
    data, found = _read(path, MAX_FILE_BYTES)
    if found.st_mode & 0o077:
        raise CertificateError(
            f"{path}: expected a key file that only its owner can read (mode 0600), got mode "
            f"{stat.S_IMODE(found.st_mode):04o}; run `chmod 600 {path}`, and have the certificate issued again if "
            f"others may have read it"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise CertificateError(
            f"{path}: expected a key file of user {os.geteuid()}, got one of user {found.st_uid}; run "
            f"`chown {os.geteuid()} {path}`"
        )
    return data


def _read(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    try:
        descriptor = open_descriptor(path)
    except FileNotFoundError as error:
        raise CertificateError(
            f"{path}: expected a file, got none; copy it there, or see docs/certificates.md"
        ) from error
    except UnfitFile as error:
        raise CertificateError(f"{path}: expected a file, got {error.got}; give another path") from error
    except OSError as error:
        raise CertificateError(f"{path}: expected a readable file: {error.strerror}; see its permissions") from error
    except ValueError as error:  # a zero in a path of site.toml
        raise CertificateError(f"{str(path)!r}: expected a path, got one with a zero character; correct it") from error
    try:
        found = os.fstat(descriptor)
        data = bytearray()
        while chunk := os.read(descriptor, max_bytes + 1 - len(data)):
            data += chunk
            if len(data) > max_bytes:
                raise CertificateError(
                    f"{path}: expected at most {max_bytes} bytes, got more; shorten it, or give another file"
                )
        return bytes(data), found
    except OSError as error:
        raise CertificateError(f"{path}: expected a readable file: {error.strerror}; see the disk") from error
    finally:
        os.close(descriptor)
