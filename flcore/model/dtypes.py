"""The dtypes of tensors: flcore's names and NumPy's dtypes."""

from typing import Any

import ml_dtypes
import numpy as np
from flcore_layout import DTYPES as LAYOUT_DTYPES

from flcore.errors import SpecError

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name, name)) for name, row in LAYOUT_DTYPES.items() if not row.is_quantized
}
"""NumPy's dtype by flcore's name, without quantized dtypes. bfloat16 is `ml_dtypes.bfloat16`; uint16 holds integers."""

INTEGERS = frozenset(name for name, dtype in DTYPES.items() if dtype.kind in "iub")
"""The dtypes that are summed exactly with every accumulator: integers, and booleans as the numbers 0 and 1."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return flcore's name of a NumPy dtype, or raise `SpecError`.

    >>> dtype_name(np.dtype("<f4"))
    'float32'
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        raise SpecError(f"dtype {dtype} is not supported; expected one of {', '.join(DTYPES)}") from None
