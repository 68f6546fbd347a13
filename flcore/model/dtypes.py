"""The dtypes a tensor may have, as people write them and as NumPy knows them."""

from typing import Any

import ml_dtypes
import numpy as np

from flcore.errors import SpecError

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
"""By name. A bfloat16 array has the dtype `ml_dtypes.bfloat16`; a uint16 array holds integers."""

INTEGERS = frozenset(name for name, dtype in DTYPES.items() if dtype.kind in "iub")
"""Those that are summed exactly, whatever floats are summed in: integers; and booleans, the numbers 0 and 1."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a NumPy dtype, or raise `SpecError`.

    >>> dtype_name(np.dtype("<f4"))
    'float32'
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise SpecError(f"dtype {dtype} is not supported; expected one of {', '.join(DTYPES)}") from None
