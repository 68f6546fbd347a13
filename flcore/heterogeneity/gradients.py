"""Terms that are added to gradients of any library: NumPy arrays, PyTorch tensors and others, nested or flat."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore.errors import SpecError
from flcore.model.arrays import AnyArrays, converter_for, dtype_and_shape, flatten

Values = npt.NDArray[Any]


class ArraysLike:
    """NumPy arrays by name that are read as arrays of a gradient's library, dtype and device.

    Each is converted once, when the first gradient of its name is seen, and again only for another dtype or device.

    Args:
        arrays: NumPy arrays by full name.
    """

    def __init__(self, arrays: Mapping[str, Values]) -> None:
        self._arrays = arrays
        self._converted: dict[str, tuple[object, Any]] = {}

    def __getitem__(self, name: str) -> Values:
        return self._arrays[name]

    def like(self, name: str, gradient: Any) -> Any:
        """Return the array of a name as an array like a gradient.

        Raises:
            SpecError: There is no array of this name, or the gradient has another shape or is not an array.
        """
        key = type(gradient), getattr(gradient, "dtype", None), getattr(gradient, "device", None)
        known = self._converted.get(name)
        if known is None or known[0] != key:
            dtype, shape = dtype_and_shape(gradient, name)
            values = self._require(name)
            if shape != values.shape:
                raise SpecError(f"tensor {name!r}: expected a gradient of shape {values.shape}, got {shape}")
            # A copy: PyTorch warns of arrays that are read-only, and a model's views end with the task.
            known = key, converter_for(gradient)(np.array(values, dtype))
            self._converted[name] = known
        if tuple(gradient.shape) != tuple(known[1].shape):
            raise SpecError(
                f"tensor {name!r}: expected a gradient of shape {tuple(known[1].shape)}, got {tuple(gradient.shape)}"
            )
        return known[1]

    def _require(self, name: str) -> Values:
        if name not in self._arrays:
            known = ", ".join(sorted(self._arrays)[:20])
            raise SpecError(f"tensor {name!r}: the global model has no tensor of this name; it has {known}")
        return self._arrays[name]


def float_difference(after: Any, before: Values, name: str) -> npt.NDArray[np.float64]:
    """Return `after - before` in float64. Raises `SpecError` for another shape."""
    if after.shape != before.shape:
        raise SpecError(f"tensor {name!r}: expected shape {before.shape}, got {after.shape}")
    difference: npt.NDArray[np.float64] = np.subtract(after, before, dtype=np.float64)
    return difference


def delta_of(after: Values, before: Values, name: str) -> Values:
    """Return the difference `after - before` of a tensor, in its dtype.

    Raises:
        SpecError: The shapes or dtypes differ, or the dtype has no differences (booleans, unsigned integers) and the
            values differ.
    """
    if after.shape != before.shape or after.dtype != before.dtype:
        raise SpecError(
            f"tensor {name!r}: expected {before.dtype} of shape {before.shape}, got {after.dtype} of shape "
            f"{after.shape}"
        )
    if before.dtype.kind in "bu":
        if not np.array_equal(after, before):
            raise SpecError(f"tensor {name!r}: {before.dtype} has no negative differences, so it must stay as it was")
        return np.zeros_like(before)
    return np.subtract(after, before)


def require_names(trained: AnyArrays, model: Mapping[str, Values]) -> AnyArrays:
    """Return trained tensors by full name. Raises `SpecError` unless they are those of the model."""
    flat = flatten(trained)
    if odd := sorted(set(flat) ^ set(model)):
        where = "the trained model lacks it" if odd[0] in model else "the global model has no tensor of this name"
        raise SpecError(f"tensor {odd[0]!r}: {where}")
    return flat
