"""The arithmetic of aggregation: flat typed buffers in, flat typed buffers out.

A `Backend` offers the same verbs on every device: `fold` adds weighted parts to a running total, `finish` turns the
total into a mean in the output's dtype, `inspect` looks for values that must not be folded. Nothing here knows of
tensors, clients or rounds. Buffers are one-dimensional, contiguous and hold one dtype in its *storage* form: 16-bit
floats are the uint16 of their bits (`storage_dtype`).

    >>> import numpy as np
    >>> from flcore_kernels import backend
    >>> cpu = backend("cpu")
    >>> total = np.zeros(3)
    >>> parts = [np.array([1, 2, 3], np.float32), np.array([5, 6, 7], np.float32)]
    >>> cpu.fold(total, parts, [3.0, 1.0], "float32")
    >>> mean = np.empty(3, np.float32)
    >>> cpu.finish(total, 4.0, mean, "float32")
    -1
    >>> mean.tolist()
    [2.0, 3.0, 4.0]
"""

from flcore_kernels.backend import Backend, Inspection
from flcore_kernels.devices import backend
from flcore_kernels.dtypes import EXACT_INTEGER_LIMIT, STORAGE, storage_dtype
from flcore_kernels.errors import BackendUnavailable, BufferMismatch, KernelError, UnknownDType

__all__ = [
    "EXACT_INTEGER_LIMIT",
    "STORAGE",
    "Backend",
    "BackendUnavailable",
    "BufferMismatch",
    "Inspection",
    "KernelError",
    "UnknownDType",
    "backend",
    "storage_dtype",
]
