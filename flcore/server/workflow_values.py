"""The small values that a workflow keeps across restarts (`Controller.state`), and their bytes in the run's record."""

import io
import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from flcore.errors import JobError

MAX_STATE_BYTES = 64 << 20
"""The values of a workflow are written at the end of each round. A model belongs into `Controller.publish`."""

_JSON, _ARRAY, _SCALAR, _NAMED_DTYPE = b"j", b"a", b"s", b"d"
"""The first byte of an encoded value. A scalar is followed by the encoded array of it; a dtype's name and a newline, by
the array of its bits."""

_BITS = {1: np.uint8, 2: np.uint16}

WorkflowValues = dict[str, Any]
"""JSON values, NumPy arrays and NumPy scalars, by name."""


def encode_values(values: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of values. Raises `JobError`, which names the key, for values that cannot be kept.

    >>> decode_values(encode_values({"best": 0.5, "momentum": np.zeros(2)}))
    {'best': 0.5, 'momentum': array([0., 0.])}
    """
    encoded = {key: _encode(key, value) for key, value in values.items()}
    size = sum(map(len, encoded.values()))
    if size > MAX_STATE_BYTES:
        raise JobError(f"control.state: expected at most {MAX_STATE_BYTES:,} bytes, got {size:,}; keep less in it")
    return encoded


def decode_values(encoded: Mapping[str, bytes]) -> WorkflowValues:
    """Return the values that `encode_values` has encoded: of the same types and dtypes."""
    return {key: _decode(value) for key, value in encoded.items()}


def replace_values(values: WorkflowValues, encoded: Mapping[str, bytes]) -> None:
    """Replace values by those that were encoded. The dict stays, as the workflow may refer to it."""
    decoded = decode_values(encoded)
    values.clear()
    values.update(decoded)


def _encode(key: str, value: Any) -> bytes:
    if type(key) is not str:
        raise JobError(f"control.state: expected names as keys, got {key!r}")
    if isinstance(value, np.generic):
        return _SCALAR + _encode_array(key, np.asarray(value))
    if isinstance(value, np.ndarray):
        if type(value) is not np.ndarray:
            raise JobError(
                f"control.state[{key!r}]: expected a NumPy array, got a {type(value).__name__}, whose other attributes "
                "would be lost in a restart; keep its parts as arrays (numpy.array, for masked arrays .data and .mask)"
            )
        return _encode_array(key, value)
    return _encode_json(key, value)


def _encode_array(key: str, array: npt.NDArray[Any]) -> bytes:
    dtype, start = array.dtype, _ARRAY
    if dtype.hasobject:
        raise JobError(f"control.state[{key!r}]: expected an array of numbers, got one of objects")
    named = _dtype_named(dtype.name)
    if named is not None and named == dtype:  # .npy files have no name for it
        start = _NAMED_DTYPE + dtype.name.encode() + b"\n"
        array = array.view(_BITS[dtype.itemsize])
    stream = io.BytesIO()
    try:
        np.save(stream, array, allow_pickle=False)
        encoded = start + stream.getvalue()
        if _decode(encoded).dtype == dtype:
            return encoded
    except (TypeError, ValueError):
        pass
    raise JobError(f"control.state[{key!r}]: expected an array of a dtype that .npy files have, got {dtype}")


def _encode_json(key: str, value: Any) -> bytes:
    try:
        encoded = json.dumps(value)
        decoded = json.loads(encoded)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(
            f"control.state[{key!r}]: expected a JSON value, a NumPy array or a NumPy scalar: {error}"
        ) from error
    if not _is_same(decoded, value):  # keys that are no text, tuples, subclasses
        raise JobError(
            f"control.state[{key!r}]: expected a JSON value, a NumPy array or a NumPy scalar: after a restart, "
            f"{value!r} would be {decoded!r}"
        )
    return _JSON + encoded.encode()


def _is_same(decoded: Any, value: Any) -> bool:
    """Whether a JSON value has the types that it had, at each depth."""
    if type(decoded) is not type(value):
        return False
    if isinstance(decoded, dict):
        return list(decoded) == list(value) and all(_is_same(decoded[key], value[key]) for key in decoded)
    if isinstance(decoded, list):
        return len(decoded) == len(value) and all(map(_is_same, decoded, value))
    return repr(decoded) == repr(value)  # NaN, and zeros of both signs


def _decode(encoded: bytes) -> Any:
    kind, content = encoded[:1], encoded[1:]
    if kind == _JSON:
        return json.loads(content)
    if kind == _SCALAR:
        return _decode(content)[()]
    if kind == _NAMED_DTYPE:
        name, _, content = content.partition(b"\n")
        return _load(content).view(_dtype_named(name.decode()))
    return _load(content)


def _load(content: bytes) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _dtype_named(name: str) -> np.dtype[Any] | None:
    """Return the dtype of this name that `ml_dtypes` adds to NumPy's; None if it has none."""
    scalar = getattr(ml_dtypes, name, None)
    is_dtype = isinstance(scalar, type) and issubclass(scalar, np.generic)
    return np.dtype(scalar) if is_dtype else None
