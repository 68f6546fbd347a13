"""The backends, by name."""

from flcore_kernels.backend import Backend
from flcore_kernels.errors import BackendUnavailable


def backend(name: str = "auto") -> Backend:
    """Return the backend called `name`: `"cpu"`, or `"auto"` for the device that serves host memory best (the CPU).

    Numba is imported here, with the first backend, and not with the package.
    """
    if name not in ("auto", "cpu"):
        raise BackendUnavailable(f"backend {name!r} does not exist here; expected 'auto' or 'cpu'")
    from flcore_kernels import cpu

    return cpu
