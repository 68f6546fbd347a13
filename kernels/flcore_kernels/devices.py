"""The backends, by name."""

from collections.abc import Iterator, Sequence
from functools import cache

from flcore_kernels.backend import Backend
from flcore_kernels.errors import BackendUnavailable


@cache
def backend(name: str = "auto", threads: int | None = None) -> Backend:
    """Return the backend called `name`: `"cpu"`, or `"auto"` for the device that serves host memory best (the CPU).

    `threads` is how many it uses at most: by default what `FLCORE_THREADS` says, or else the cores that this process
    may use. No result depends on it. Numba is imported here, with the first backend, and not with the package.
    """
    if name not in ("auto", "cpu"):
        raise BackendUnavailable(f"backend {name!r} does not exist here; expected 'auto' or 'cpu'")
    from flcore_kernels.cpu import CpuBackend

    return CpuBackend(threads)


def warm(
    dtypes: Sequence[str] | None = None, processes: int | None = None
) -> Iterator[tuple[int, int, tuple[str, ...], bool]]:
    """Compile the CPU's kernels ahead of their first use and keep them on disk; yields what is done after each.

    `dtypes`: keys of `STORAGE`, or `["all"]`; by default those in everyday use. Each item is (how many are done, how
    many there are, which one, whether it had to be compiled).
    """
    from flcore_kernels.cpu_warm import warm as warm_cpu

    return warm_cpu(dtypes, processes)
