"""Where compiled code is kept: a directory of the user's own, which nobody else can write to.

`FLCORE_CACHE_DIR` names another place than `~/.cache/flcore` (or `$XDG_CACHE_HOME/flcore`).
"""

import os
import stat
import warnings
from pathlib import Path


def directory_of(name: str) -> Path | None:
    """Return the directory of this name, made if need be; None, after a warning, where none is the user's alone."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("FLCORE_CACHE_DIR") or Path(home) / "flcore")
    directory = root / name
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for place in (root, directory):
            place.mkdir(mode=0o700, exist_ok=True)
        safe = all(_is_ours(place) for place in (root, directory))
    except OSError as error:
        warnings.warn(f"flcore: compiled kernels are not kept: {error}", RuntimeWarning, stacklevel=3)
        return None
    if not safe:
        warnings.warn(
            f"flcore: compiled kernels are not kept, because others can write to {root} (chmod go-w mends that, "
            "FLCORE_CACHE_DIR names another place)",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return directory


def _is_ours(place: Path) -> bool:
    if not hasattr(os, "getuid"):
        return True
    found = place.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
