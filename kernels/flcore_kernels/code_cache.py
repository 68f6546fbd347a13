"""The cache of compiled code: files with a checksum, in a directory that only the user and root can change.

The directory is `$FLCORE_CACHE_DIR`, `$XDG_CACHE_HOME/flcore` or `~/.cache/flcore`. The cache saves time and does
nothing else: if a directory or a file cannot be used, code is compiled after a warning; if a file is damaged, without
one.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DAY_S = 24 * 3600.0
UNUSED_S = 30 * DAY_S
"""Directories of other versions that were not used for 30 days are removed when a new one is made."""

NEWEST = 4
"""The newest directories stay, however old, for a person who switches between versions."""

_MAGIC = b"flcore-code 1\n"
_HEAD_BYTES = len(_MAGIC) + hashlib.blake2b().digest_size
_OURS = re.compile(r"(kernels|cuda)-[0-9a-f]{20}")


@dataclass(frozen=True)
class CachedCode:
    """What a directory of compiled code holds.

    Attributes:
        directory: The directory.
        count: The number of files.
        nbytes: Their size.
        damaged: The names of files that cannot be used. Their code is compiled anew.
        is_writable: Whether more can be kept.
    """

    directory: Path
    count: int
    nbytes: int
    damaged: tuple[str, ...]
    is_writable: bool


def inspect_directory(directory: Path, suffix: str) -> CachedCode:
    """Read each file of a directory whose name ends with a suffix, and return what there is."""
    files = sorted(directory.glob(f"*{suffix}"))
    damaged = tuple(file.name for file in files if read(file) is None)
    nbytes = sum(file.stat().st_size for file in files)
    return CachedCode(directory, len(files), nbytes, damaged, os.access(directory, os.W_OK))


def directory_for(name: str) -> Path | None:
    """Return the directory of this name, which is created if missing; None, after a warning, if it cannot be used.

    A directory that belongs to root, and that nobody else can write to, is used too: a container image may contain one.
    """
    try:
        root = _root()
        directory = root / name
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        is_new = not directory.exists()
        directory.mkdir(mode=0o700, exist_ok=True)
        trouble = _trouble(root.stat(), root) or _trouble(directory.stat(), directory)
    except (OSError, RuntimeError) as error:  # RuntimeError: no HOME, and no such user in the passwd file
        warn_once(f"compiled kernels are not kept: {error} (set FLCORE_CACHE_DIR to use another directory)")
        return None
    if trouble:
        warn_once(f"compiled kernels are not kept, because {trouble} (set FLCORE_CACHE_DIR to use another directory)")
        return None
    with suppress(OSError):  # root's directory cannot be changed, but used
        if is_new:
            _prune(root)
        elif time.time() - directory.stat().st_mtime > DAY_S:
            os.utime(directory)
    return directory


def read(path: Path) -> bytes | None:
    """Return the bytes that `write` stored under this directory and name; None if the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            if _trouble(os.fstat(file.fileno()), path):
                return None
            kept = file.read()
    except OSError:
        return None
    head, data = kept[:_HEAD_BYTES], kept[_HEAD_BYTES:]
    return data if head == _head(path, data) else None


def write(path: Path, data: bytes) -> None:
    """Replace a file atomically: write beside it, then rename. Warns if that is not possible."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_head(path, data))
                file.write(data)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        warn_once(f"compiled kernels are not kept in {path.parent}: {error.strerror or error}")


@cache
def warn_once(message: str) -> None:
    """Warn, once per process, of something that concerns many kernels."""
    warnings.warn(f"flcore: {message}", RuntimeWarning, stacklevel=2)


def _root() -> Path:
    if named := os.environ.get("FLCORE_CACHE_DIR"):
        return Path(named).absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "flcore"


def _trouble(found: os.stat_result, place: Path) -> str:
    """Return why code from a place cannot be trusted, or an empty string."""
    if not hasattr(os, "getuid"):
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"{place} belongs to user {found.st_uid}, and this is user {os.getuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {place} (chmod go-w mends that)"
    return ""


def _head(path: Path, data: bytes) -> bytes:
    """Return the head of a file: a digest of its bytes and of its place.

    Unpickling damaged bytes, or running them as machine code, may do anything. So may a file of another kernel.
    """
    digest = hashlib.blake2b(f"{path.parent.name}/{path.name}\0".encode())
    digest.update(data)
    return _MAGIC + digest.digest()


def _prune(root: Path) -> None:
    """Remove directories of other versions that were not used for long. A process that misses one recompiles."""
    used = {place: place.lstat() for place in root.iterdir() if _OURS.fullmatch(place.name)}
    places = [place for place, found in used.items() if stat.S_ISDIR(found.st_mode)]
    for place in sorted(places, key=lambda place: used[place].st_mtime, reverse=True)[NEWEST:]:
        if time.time() - used[place].st_mtime > UNUSED_S:
            shutil.rmtree(place, ignore_errors=True)  # which follows no links
