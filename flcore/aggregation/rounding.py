"""Float64 values rounded to a model's dtype, once."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import STORAGE

from flcore.model.dtypes import DTYPES, INTEGERS


def rounded(values: npt.NDArray[np.float64], dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return values rounded to a dtype, ties to even, and which of them it holds.

    >>> rounded(np.array([2.5, 300.0]), "int8")[1].tolist()
    [True, False]
    """
    with np.errstate(all="ignore"):
        if dtype in INTEGERS:
            low, high = STORAGE[dtype].range
            whole = np.rint(values)
            fits = (whole >= low) & (whole <= high)
            return np.where(fits, whole, 0).astype(DTYPES[dtype]), fits
        narrow = (_to_odd(values) if dtype == "bfloat16" else values).astype(DTYPES[dtype])
    return narrow, np.isfinite(narrow)


def _to_odd(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return float32 values whose last bit is set where anything was cut off, so that rounding them again rounds once.

    (ml_dtypes rounds float64 to float32 and then to bfloat16, which is wrong near ties. Boldo and Melquiond, 2008,
    "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd".)
    """
    single = values.astype(np.float32)
    is_cut = single.astype(np.float64) != values
    is_cut &= np.isfinite(values)
    bits = single.view(np.uint32)
    bits -= is_cut & (np.abs(single) > np.abs(values))
    bits |= is_cut
    return single
