"""The dtypes a tensor may have, as people write them and as NumPy knows them."""

from typing import Any

import ml_dtypes
import numpy as np
from flcore_layout import DTYPES as LAYOUT_DTYPES

from flcore.errors import SpecError

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name, name)) for name, row in LAYOUT_DTYPES.items() if not row.is_quantized
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
