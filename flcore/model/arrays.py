"""Named arrays of any library: read in place, nested or flat, and converted back to their library.

A model may consist of NumPy, PyTorch, JAX or CuPy arrays, or of objects with the buffer protocol or DLPack. It may be a
nested mapping, such as a tree of JAX parameters; flcore names its tensors by their paths (`encoder.layer.weight`).
`array_libraries` has the table of libraries.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flcore_kernels import BufferMismatch, DeviceArray, OutOfDeviceMemory, device_of

from flcore.errors import SpecError
from flcore.model.array_libraries import Converter, DtypeAndShape, Values, library_of, unchanged

AnyArrays = Mapping[str, Any]
"""Arrays of any library by name. A value may itself be such a mapping."""

MAX_NESTING = 64
"""The depth of nested mappings, well below Python's recursion limit. A mapping that contains itself exceeds it."""


def as_array(array: Any, name: str) -> Values:
    """Return a NumPy array of an array's values: a view of host memory, or a copy from a device.

    Args:
        array: An array of any library.
        name: The tensor's name, for errors.

    Returns:
        The values.

    Raises:
        SpecError: The object is not an array, or its values cannot be read.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise SpecError(f"tensor {name!r}: a masked array hides values that would count: fill it first")
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    try:
        return library_of(array).to_numpy(array)
    except (AttributeError, TypeError, ValueError, BufferError, RuntimeError) as error:
        raise _not_an_array(array, name, error) from None


def as_buffer(array: Any, name: str) -> Values | DeviceArray:
    """Return an array as the kernels take it: a NumPy array, or a description of memory on a CUDA device.

    Values on a device stay there. They are copied, on the device, only to make them contiguous.

    Args:
        array: An array of any library.
        name: The tensor's name, for errors.

    Returns:
        The buffer.

    Raises:
        SpecError: The object is not an array, or its library cannot make it contiguous.
    """
    if device_of(array) is None:
        return as_array(array, name)
    try:
        described = library_of(array).to_device_array(array)
    except (AttributeError, BufferMismatch, RuntimeError, TypeError, ValueError) as error:
        raise _not_an_array(array, name, error) from None
    if not described.flags.c_contiguous:
        raise SpecError(
            f"tensor {name!r}: expected a contiguous array on the device, got a {type(array).__name__} with strides: "
            "make it contiguous first"
        )
    return described


def dtype_and_shape(array: Any, name: str) -> DtypeAndShape:
    """Return an array's dtype and shape, without copying values from a device. Raises `SpecError`."""
    if isinstance(array, np.ndarray | np.generic):
        return as_array(array, name).dtype, array.shape
    metadata = library_of(array).metadata
    try:
        if metadata is not None and (found := metadata(array)) is not None:
            return found
        buffer = as_buffer(array, name)
        return np.dtype(buffer.name) if isinstance(buffer, DeviceArray) else buffer.dtype, buffer.shape
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise _not_an_array(array, name, error) from None


def requires_copy(array: Any) -> bool:
    """Whether `as_array` copies the array's values from a device."""
    if isinstance(array, np.ndarray | np.generic):
        return False
    metadata = library_of(array).metadata
    return device_of(array) is not None or (metadata is not None and metadata(array) is not None)


def empty_like(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return an uninitialized array for a result, of the same library and on the same device as `array`.

    Args:
        array: An array of any library, with the shape and dtype of the result.
        shape: The shape.
        dtype: The dtype.

    Returns:
        An array of the same library; a NumPy array if `array` is in host memory or its library is not in the table.

    Raises:
        OutOfDeviceMemory: The device has too little memory.
    """
    library = None if device_of(array) is None else library_of(array)
    if library is None or library.empty_like is None:
        return np.empty(shape, dtype)
    try:
        return library.empty_like(array)
    except (MemoryError, RuntimeError) as error:  # CuPy's is a MemoryError, PyTorch's a RuntimeError
        needed = dtype.itemsize * math.prod(shape)
        raise OutOfDeviceMemory(f"there is no room for a result of {needed:,} bytes: {error}", needed) from None


def converter_for(array: Any) -> Converter:
    """Return a converter from NumPy to the library and device of an array. Keeps no reference to the array."""
    return unchanged if isinstance(array, np.ndarray | np.generic) else library_of(array).converter(array)


def flatten(arrays: AnyArrays) -> AnyArrays:
    """Return arrays by their full names, such as `encoder.layer.weight`.

    Args:
        arrays: Arrays by name, nested or not.

    Returns:
        A flat mapping; `arrays` itself if it is flat.

    Raises:
        SpecError: Two arrays have the same full name, a name is not a string, or mappings are nested too deep.

    Example:
        >>> list(flatten({"encoder": {"weight": 1, "bias": 2}, "scale": 3}))
        ['encoder.weight', 'encoder.bias', 'scale']
    """
    if not any(isinstance(array, Mapping) for array in arrays.values()):
        return arrays
    flat: dict[str, Any] = {}
    for name, array in _walk(arrays, "", 1):
        if name in flat:
            raise SpecError(f"tensor {name!r} appears twice: once in a nested mapping, and once under its full name")
        flat[name] = array
    return flat


def unflatten(flat: Mapping[str, Any], like: AnyArrays, prefix: str = "") -> dict[str, Any]:
    """Return arrays nested in the same way as `like`.

    >>> unflatten({"encoder.bias": 2, "scale": 3}, {"encoder": {"bias": None}, "scale": None})
    {'encoder': {'bias': 2}, 'scale': 3}
    """
    return {
        name: unflatten(flat, value, f"{prefix}{name}.") if isinstance(value, Mapping) else flat[prefix + name]
        for name, value in like.items()
    }


def converters_for(arrays: AnyArrays) -> AnyArrays:
    """Return, for each array, a converter from NumPy to its library and device; nested in the same way.

    Keeps no reference to the arrays.
    """
    return unflatten({name: converter_for(array) for name, array in flatten(arrays).items()}, arrays)


def apply_converters(
    values: Mapping[str, Any], converters: AnyArrays, ties: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return values as arrays of their libraries, nested in the same way as `converters`.

    Args:
        values: Values by full name. NumPy arrays are converted; arrays of another library are returned as they are.
        converters: The result of `converters_for`.
        ties: For a tensor that shares its array with another one (tied weights), the name of the other one.

    Returns:
        The arrays.
    """
    ties, flat_converters = ties or {}, flatten(converters)
    flat = {
        name: flat_converters[name](array) if isinstance(array, np.ndarray) else array
        for name, array in values.items()
        if name not in ties
    }
    return unflatten(flat | {name: flat[first] for name, first in ties.items()}, converters)


def convert_like(arrays: Mapping[str, Values], like: AnyArrays) -> dict[str, Any]:
    """Return copies of NumPy arrays, with the library, device and nesting of the arrays of `like`.

    Args:
        arrays: NumPy arrays by full name.
        like: Arrays of any library with the same full names.

    Returns:
        The copies.

    Raises:
        SpecError: The two have different names.
    """
    if odd := sorted(set(arrays) ^ set(flatten(like))):
        raise SpecError(f"like: expected the tensors of the model, by name; {odd[0]!r} is in one of them only")
    return apply_converters({name: array.copy() for name, array in arrays.items()}, converters_for(like))


def _walk(arrays: AnyArrays, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_NESTING:
        raise SpecError(f"expected mappings nested {MAX_NESTING} deep at most, got more at {prefix[:40]}...")
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise SpecError(f"a tensor's name is a string, not {name!r}{prefix and f' (in {prefix[:-1]!r})'}")
        if isinstance(array, Mapping):
            yield from _walk(array, f"{prefix}{name}.", depth + 1)
        else:
            yield prefix + name, array


def _not_an_array(thing: Any, name: str, error: Exception) -> SpecError:
    return SpecError(
        f"tensor {name!r}: expected an array of NumPy, PyTorch, JAX or CuPy, or something with the buffer protocol, "
        f"DLPack or __cuda_array_interface__, got {type(thing).__name__} ({error})"
    )
