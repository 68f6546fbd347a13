"""The backends, by name."""

import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from flcore_kernels.backend import Backend
from flcore_kernels.code_cache import CachedCode, inspect_directory
from flcore_kernels.device_arrays import device_of
from flcore_kernels.errors import BackendUnavailable

MAX_BACKENDS = 8
"""CUDA backends (of one device, thread count and budget each) that stay ready. Each keeps page-locked memory."""

BUDGET_SHARE, LEAST_PORTION = 16, 256 << 10
"""A portion takes at most a 16th of a budget, because three are under way at once and totals need room. Less than
256 KiB would not be worth a launch."""


def backend(
    name: str = "auto", threads: int | None = None, *, like: Any = None, budget_bytes: int | None = None
) -> Backend:
    """Return the backend called `name`. Calls with the same arguments return the same backend.

    Numba or CuPy is imported with the first backend of its kind, not with the package.

    Args:
        name: `"cpu"`; `"cuda"`, which is device 0; `"cuda:1"`; or `"auto"`: the device of `like`. For arrays in host
            memory this is the CPU, because the bus to a device would limit them. If the device cannot be used, it is
            the CPU after one warning.
        threads: Threads of the CPU at most. Default: `FLCORE_THREADS`, or else the cores that this process may use. No
            result depends on it.
        like: An array on the device that `"auto"` chooses.
        budget_bytes: Bytes of device memory at most. Default: no limit.

    Raises:
        BackendUnavailable: No backend has this name, or its device or CuPy is missing. The message says which.

    Example:
        >>> backend("cpu").name
        'cpu'
    """
    if name == "cpu":
        return _cpu(threads)
    if name == "auto":
        number = device_of(like)
        if number is None:
            return _cpu(threads)
        try:
            return _cuda(number, threads, budget_bytes)
        except BackendUnavailable as error:
            fall_back(error)
            return _cpu(threads)
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if match is None:
        raise BackendUnavailable(f"backend {name!r} does not exist; expected 'auto', 'cpu', 'cuda' or 'cuda:1'")
    return _cuda(int(match[1] or 0), threads, budget_bytes)


@cache
def _cpu(threads: int | None) -> Backend:
    from flcore_kernels.cpu.backend import CpuBackend

    return CpuBackend(threads)


@lru_cache(MAX_BACKENDS)
def _cuda(number: int, threads: int | None, budget_bytes: int | None) -> Backend:
    from flcore_kernels.cuda.backend import CudaBackend
    from flcore_kernels.cuda.device import CupyDevice
    from flcore_kernels.cuda.ring import PORTION_BYTES

    portion_bytes = PORTION_BYTES
    if budget_bytes is not None:
        portion_bytes = min(PORTION_BYTES, max(LEAST_PORTION, budget_bytes // BUDGET_SHARE))
    return CudaBackend(CupyDevice(number, budget_bytes), threads, portion_bytes)


@cache
def _warned() -> list[str]:
    """Return the one list of warnings of the process: empty until the first."""
    return []


def fall_back(error: Exception) -> None:
    """Warn, once per process, that arrays on a device are copied to the CPU, and why.

    Args:
        error: Why the device cannot be used.
    """
    if not _warned():
        _warned().append(str(error))
        warnings.warn(
            f"flcore: arrays on a CUDA device are copied to the CPU and combined there: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def warm(
    dtypes: Sequence[str] | None = None, processes: int | None = None, *, rules: bool = False
) -> Iterator[tuple[int, int, tuple[str, ...], bool]]:
    """Compile the CPU's kernels ahead of their first use, and cache them on disk.

    Args:
        dtypes: Keys of `STORAGE`, or `["all"]`. Default: float32, bfloat16, float16, float64, int64 and int8[256].
        processes: Processes that compile. Default: as `threads` of `backend`.
        rules: Also the kernels of robust rules and server optimizers. Default: False.

    Yields:
        After each kernel: (kernels done, kernels in total, the kernel's key, whether it had to be compiled).

    Raises:
        KernelError: The cache's directory cannot be used, or Numba is told not to compile.
    """
    from flcore_kernels.cpu.warm import warm as warm_cpu

    return warm_cpu(dtypes, processes, rules=rules)


def cached_kernels() -> CachedCode | None:
    """Return what is cached of the CPU's kernels; None, after a warning, if no directory can be used."""
    from flcore_kernels.cpu.compiler import cache_directory

    directory = cache_directory()
    return None if directory is None else inspect_directory(directory, ".nbc")
