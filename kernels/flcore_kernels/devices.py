"""The backends, by name."""

import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from flcore_kernels.backend import Backend
from flcore_kernels.device_arrays import device_of
from flcore_kernels.errors import BackendUnavailable

KEPT = 8
"""Backends of a device, with different budgets, that stay ready."""

SHARE, LEAST_PIECE = 16, 256 << 10
"""A piece takes this share of a budget at most, of which several are under way; a smaller one would not be worth it."""


def backend(
    name: str = "auto", threads: int | None = None, *, like: Any = None, budget_bytes: int | None = None
) -> Backend:
    """Return the backend called `name`: `"cpu"`, `"cuda"`, `"cuda:1"`, or `"auto"` for the one where the data is.

    `"cuda"` is device 0. The data is where the array `like` is. What is in host memory is served best by the CPU, for a
    mean from there is bound by the bus to the device; and so is what is on a device that cannot be used here, after one
    warning.

    `threads` is how many of the processor's are used at most: by default what `FLCORE_THREADS` says, or else the cores
    that this process may use. No result depends on it. `budget_bytes` bounds the memory that is taken of a device.
    Numba or CuPy is imported here, with the first backend of its kind, and not with the package.

    Raises `BackendUnavailable`, which says what there is.
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


@lru_cache(KEPT)
def _cuda(number: int, threads: int | None, budget_bytes: int | None) -> Backend:
    from flcore_kernels.cuda.backend import CudaBackend
    from flcore_kernels.cuda.device import CupyDevice
    from flcore_kernels.cuda.ring import PIECE_BYTES

    piece_bytes = PIECE_BYTES if budget_bytes is None else min(PIECE_BYTES, max(LEAST_PIECE, budget_bytes // SHARE))
    return CudaBackend(CupyDevice(number, budget_bytes), threads, piece_bytes)


@cache
def _warned() -> list[str]:
    return []


def fall_back(error: Exception) -> None:
    """Tell, once, why data that is on a device is brought to the CPU."""
    if not _warned():
        _warned().append(str(error))
        warnings.warn(
            f"flcore: arrays on a CUDA device are copied to the CPU and combined there: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def warm(
    dtypes: Sequence[str] | None = None, processes: int | None = None
) -> Iterator[tuple[int, int, tuple[str, ...], bool]]:
    """Compile the CPU's kernels ahead of their first use and keep them on disk; yields what is done after each.

    `dtypes`: keys of `STORAGE`, or `["all"]`; by default those in everyday use. Each item is (how many are done, how
    many there are, which one, whether it had to be compiled).
    """
    from flcore_kernels.cpu.warm import warm as warm_cpu

    return warm_cpu(dtypes, processes)
