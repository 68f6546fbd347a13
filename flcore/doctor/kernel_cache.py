"""The cache of compiled kernels: usable, filled, undamaged."""

import os
import warnings
from collections.abc import Callable

from flcore_kernels import CachedCode, cached_kernels

from flcore.doctor.result import CheckResult

NAME = "kernel cache"


def check_kernel_cache(inspect: Callable[[], CachedCode | None] = cached_kernels) -> CheckResult:
    """Check that compiled kernels are kept, and are there.

    Args:
        inspect: Returns what is cached; None, after a warning, if no directory can be used.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return CheckResult(
            NAME, "failed", "NUMBA_DISABLE_JIT forbids compiled kernels", "unset NUMBA_DISABLE_JIT, or set it to 0"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cached = inspect()
    if cached is None:
        reason = "; ".join(str(each.message).removeprefix("flcore: ") for each in caught)
        advice = "set FLCORE_CACHE_DIR to a directory of your own; until then each process compiles for some seconds"
        return CheckResult(NAME, "warning", reason or "no directory can be used", advice)
    if cached.damaged:
        found = f"{len(cached.damaged)} of {cached.count} compiled kernels in {cached.directory} are damaged, such as "
        advice = "they are compiled anew (flcore warm does it now); check the disk"
        return CheckResult(NAME, "warning", f"{found}{cached.damaged[0]}", advice)
    if not cached.count and not cached.is_writable:
        found = f"{cached.directory} is empty, and cannot be written to"
        return CheckResult(NAME, "warning", found, "set FLCORE_CACHE_DIR to a directory of your own")
    if not cached.count:
        found = f"no kernels are compiled in {cached.directory}"
        return CheckResult(NAME, "warning", found, "flcore warm compiles them ahead, in a minute")
    found = f"{cached.count} compiled kernels, {cached.nbytes / 1e6:.1f} MB, in {cached.directory}"
    return CheckResult(NAME, "ok", found)
