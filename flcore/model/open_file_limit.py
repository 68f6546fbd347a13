"""How many files a process may have open, and whether those of some models fit.

Models stay open while they are combined, so that a file that is replaced meanwhile is read as it was; many of them meet
the limit of open files (RLIMIT_NOFILE), which is 1024 on most machines, before any limit of memory.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flcore.errors import BudgetError, SpecError
from flcore.model.model_paths import INDEX_SUFFIX, PathLike
from flcore.model.shard_layout import read_index
from flcore.model.stored_model import resolve_checkpoint

RESERVED_FILES = 16
"""Left for all else: an index that is written, a directory that is flushed, modules and compiled kernels."""


def file_limits() -> tuple[int, int] | None:
    """Return the soft and the hard limit of open files; None where there are none."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft, max(hard, soft) if hard != resource.RLIM_INFINITY else 1 << 30


def raise_file_limit(paths: Sequence[PathLike], base: PathLike | None = None) -> None:
    """Raise this process's soft limit of open files, where it must be, so that these models and a result fit.

    At most to the hard limit. For programs that own their process: a library leaves such settings alone.
    """
    limits = file_limits()
    if limits is None:
        return
    needed = _open_count() + sum(_file_counts(paths, base))
    if needed > limits[0]:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with suppress(ValueError, OSError):  # a system with a bound below its hard limit; `require_files_fit` tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, limits[1]), hard))


def require_files_fit(paths: Sequence[PathLike], base: PathLike | None = None) -> None:
    """Raise `BudgetError`, which says how many models fit, unless all of them and a result can be open at once."""
    limits = file_limits()
    if limits is None:
        return
    (soft, hard), (others, *counts), used = limits, _file_counts(paths, base), _open_count()
    needed, left, fit = used + others + sum(counts), soft - used - others, 0
    if needed <= soft:
        return
    for count in counts:
        left -= count
        fit += left >= 0
    raise BudgetError(
        f"{len(counts)} checkpoints at once take {needed} open files or more, and the limit is {soft}: "
        f"{fit} fit; {_remedy(needed, hard)}"
    )


def _remedy(needed: int, hard: int) -> str:
    if needed > hard:
        return f"the hard limit (`ulimit -Hn`) is {hard}: ask an administrator to raise it, or combine fewer at once"
    return (
        f"raise it with `ulimit -n {needed}` in the shell, or with resource.setrlimit in Python "
        f"(the hard limit is {hard})"
    )


def _file_counts(paths: Sequence[PathLike], base: PathLike | None) -> list[int]:
    """Return how many files the result, the base and all else take, and then each model."""
    counts = [_file_count(Path(path)) for path in paths]
    return [counts[0] + (0 if base is None else _file_count(Path(base))) + RESERVED_FILES, *counts]


def _file_count(path: Path) -> int:
    with suppress(OSError, SpecError):  # it is told when it is opened
        found = resolve_checkpoint(path)
        if found.name.endswith(INDEX_SUFFIX):
            return len(set(read_index(found).values()))
    return 1


def _open_count() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - names alone; one is the listing's own
    except OSError:
        return 3
