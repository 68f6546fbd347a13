"""Where compiled code is kept: files with a digest, in a directory that only the user and root can change.

`FLCORE_CACHE_DIR` names another place than `~/.cache/flcore` (or `$XDG_CACHE_HOME/flcore`). Keeping code saves time and
does nothing else. A directory that cannot be used, or a file that cannot be written, costs a warning and the time to
compile. A damaged file costs the time to compile.
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
from functools import cache
from pathlib import Path

DAY_S = 24 * 3600.0
UNUSED_S = 30 * DAY_S
"""A directory that was not used for so long is removed when a new one is made, unless it is among the newest."""

NEWEST = 4
"""How many directories stay, however old, for a person who goes back and forth between versions."""

_MAGIC = b"flcore-code 1\n"
_HEAD_BYTES = len(_MAGIC) + hashlib.blake2b().digest_size
_OURS = re.compile(r"(kernels|cuda)-[0-9a-f]{20}")


def directory_for(name: str) -> Path | None:
    """Return the directory of this name, made if need be; None, after a warning, where it cannot be trusted or made.

    A directory of root's that nobody else can write to is as safe as the user's own, and is used as it is: an image may
    bring one.
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
    with suppress(OSError):  # used, but not ours to touch or to clear
        if is_new:
            _prune(root)
        elif time.time() - directory.stat().st_mtime > DAY_S:
            os.utime(directory)
    return directory


def read(path: Path) -> bytes | None:
    """Return the bytes that `write` kept in a file of this directory and name; None where that is not what it holds."""
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
    """Keep bytes in a file, beside which they are written first; a warning says why where that is not possible."""
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
    """Warn of something that many kernels meet alike."""
    warnings.warn(f"flcore: {message}", RuntimeWarning, stacklevel=2)


def _root() -> Path:
    if named := os.environ.get("FLCORE_CACHE_DIR"):
        return Path(named).absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "flcore"


def _trouble(found: os.stat_result, place: Path) -> str:
    """Return why code from a place cannot be trusted, or nothing."""
    if not hasattr(os, "getuid"):
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"{place} belongs to user {found.st_uid}, and this is user {os.getuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {place} (chmod go-w mends that)"
    return ""


def _head(path: Path, data: bytes) -> bytes:
    """Return what precedes the bytes in a file: their digest, and that of where they belong.

    Unpickling damaged bytes, or loading them as machine code, may do anything. So may another kernel's code.
    """
    digest = hashlib.blake2b(f"{path.parent.name}/{path.name}\0".encode())
    digest.update(data)
    return _MAGIC + digest.digest()


def _prune(root: Path) -> None:
    """Remove directories of other versions that were not used for long; a process that misses its own compiles anew."""
    used = {place: place.lstat() for place in root.iterdir() if _OURS.fullmatch(place.name)}
    places = [place for place, found in used.items() if stat.S_ISDIR(found.st_mode)]
    for place in sorted(places, key=lambda place: used[place].st_mtime, reverse=True)[NEWEST:]:
        if time.time() - used[place].st_mtime > UNUSED_S:
            shutil.rmtree(place, ignore_errors=True)  # which follows no links
