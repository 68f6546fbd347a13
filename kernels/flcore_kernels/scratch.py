"""Scratch memory of compiled loops: one block per thread, which is kept between calls."""

import threading

import numpy as np
import numpy.typing as npt

from flcore_kernels.rows import address_of

VECTOR_BYTES = 64
"""Bytes of the widest vector, and of a line of the cache."""

_local = threading.local()


def scratch(nbytes: int) -> np.uint64:
    """Return the address of at least `nbytes` bytes, at a multiple of 64. It holds until this thread asks again."""
    held: npt.NDArray[np.uint8] | None = getattr(_local, "held", None)
    if held is None or held.size < nbytes + VECTOR_BYTES:
        held = _local.held = np.zeros(nbytes + VECTOR_BYTES, np.uint8)
    return np.uint64(-(-address_of(held) // VECTOR_BYTES) * VECTOR_BYTES)
