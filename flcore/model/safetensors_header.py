"""The header of a safetensors file, parsed strictly and written.

A file consists of 8 bytes with the length of the header (little-endian), the header (a JSON object), and the bytes of
the tensors without holes. The header has an entry for each tensor, `{"dtype": "F32", "shape": [3], "data_offsets":
[0, 12]}`, with offsets from the header's end, and optionally `__metadata__`, an object of strings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flcore_layout import DTYPES as LAYOUT_DTYPES

from flcore.errors import SpecError
from flcore.model.dtypes import DTYPES
from flcore.model.model_paths import HEAD_BYTES, identify_content
from flcore.model.open_file import OpenFile
from flcore.model.spec import TensorSpec
from flcore.strict_json import DuplicateKey, parse_json

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library. It bounds the memory that a corrupt length can make `read_header` allocate."""

METADATA = "__metadata__"

DTYPE_NAMES = {row.safetensors: name for name, row in LAYOUT_DTYPES.items() if row.safetensors}
"""flcore's dtypes by their safetensors names. Others, such as F8_E4M3, are not supported."""

_SAFETENSORS_NAMES = {name: safetensors for safetensors, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Header:
    """The content of a header.

    Attributes:
        tensors: The tensors, in the order of the header, which need not be that of their bytes.
        first_bytes: The offset of each tensor's first byte from the start of the file.
        file_bytes: The size of the file.
        metadata: The metadata.
    """

    tensors: tuple[TensorSpec, ...]
    first_bytes: tuple[int, ...]
    file_bytes: int
    metadata: Mapping[str, str]


def tensor_bytes(tensor: TensorSpec) -> int:
    """Return the size of a tensor's values in a file, where there are no gaps."""
    return tensor.size * DTYPES[tensor.dtype].itemsize


def plan_header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> tuple[Header, bytes]:
    """Plan a file.

    Args:
        tensors: The tensors. The header lists them in this order.
        metadata: The metadata.

    Returns:
        The header, and the bytes of the file before the first tensor.

    Raises:
        SpecError: A name or the metadata is not valid in a header, or the header is too long.
    """
    _require_metadata(metadata)
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    entries |= dict.fromkeys(tensor.name for tensor in tensors)
    offsets: dict[str, int] = {}
    end = 0
    # Bytes come in decreasing itemsize, from an offset that is a multiple of 8. So each tensor is aligned to its
    # itemsize without padding, which the format forbids.
    for tensor in sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize):
        _require_name(tensor.name)
        offsets[tensor.name], end = end, end + tensor_bytes(tensor)
        entries[tensor.name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offsets[tensor.name], end],
        }
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    if len(content) > MAX_HEADER_BYTES:
        raise SpecError(
            f"{len(tensors)} tensors need a header of {len(content)} bytes, and safetensors allows "
            f"{MAX_HEADER_BYTES}: a smaller shard_bytes spreads them over more files"
        )
    begin = 8 + len(content)
    first_bytes = tuple(begin + offsets[tensor.name] for tensor in tensors)
    head = len(content).to_bytes(8, "little") + content
    return Header(tuple(tensors), first_bytes, begin + end, dict(metadata)), head


def read_header(file: OpenFile) -> Header:
    """Read and check the header of an open file.

    Checks all that the format demands: after it, each tensor's bytes lie in the file, and no two overlap.

    Args:
        file: The file.

    Returns:
        The header.

    Raises:
        SpecError: The file is no valid safetensors file. Names the file, and the tensor if there is one.
    """
    length_bytes = bytearray(8)
    if file.size >= 8:
        file.read_at([memoryview(length_bytes)], 0)
    length = int.from_bytes(length_bytes, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, file.size - 8):
        _refuse_foreign(file, length)
        raise SpecError(
            f"{file.path} is no safetensors file, or a truncated one: its first 8 bytes announce a header of {length} "
            f"bytes, expected at most {MAX_HEADER_BYTES} and within the file's {file.size} bytes"
        )
    data = bytearray(length)
    file.read_at([memoryview(data)], 8)
    if not data.startswith(b"{"):
        _refuse_foreign(file, length)
        raise SpecError(f"{file.path}: expected a header that begins with '{{', got {bytes(data[:1])!r}")
    return _parse(parse_object(data, file.path), 8 + length, file.size, file.path)


def _refuse_foreign(file: OpenFile, length: int) -> None:
    """Raise `SpecError` with the file's format, if its first bytes identify one."""
    head = bytearray(min(HEAD_BYTES, file.size))
    file.read_at([memoryview(head)], 0)
    if length <= MAX_HEADER_BYTES and head[8:9] == b"{":
        return  # a truncated model: the length of a header may look like the signature of a pickle or a gzip file
    description = identify_content(bytes(head))
    if description is not None:
        raise SpecError(f"{file.path} is no safetensors file, but {description}")


def _parse(entries: dict[str, Any], begin: int, file_bytes: int, path: Path) -> Header:
    try:
        metadata = entries.pop(METADATA, {})
        _require_metadata(metadata)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    tensors, first_bytes = [], []
    for name, entry in entries.items():
        try:
            tensor, offset = _parse_entry(name, entry, file_bytes - begin)
        except SpecError as error:
            raise SpecError(f"{path}: tensor {name!r}: {error}") from error
        tensors.append(tensor)
        first_bytes.append(begin + offset)
    _require_no_holes(tensors, first_bytes, begin, file_bytes, path)
    return Header(tuple(tensors), tuple(first_bytes), file_bytes, metadata)


def _parse_entry(name: str, entry: object, data_bytes: int) -> tuple[TensorSpec, int]:
    """Return a tensor and the offset of its bytes, which must lie in the `data_bytes` after the header."""
    _require_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise SpecError(f"expected an object with dtype, shape and data_offsets, got {_short(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_NAMES:
        raise SpecError(f"dtype {_short(dtype)} is not supported; expected one of {', '.join(DTYPE_NAMES)}")
    if not _are_counts(shape):
        raise SpecError(f"expected a shape as a list of whole numbers, got {_short(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        raise SpecError(
            f"expected data_offsets [first, stop] within the {data_bytes} bytes after the header, got {_short(offsets)}"
        )
    tensor = TensorSpec(name, DTYPE_NAMES[dtype], tuple(shape))
    if offsets[1] - offsets[0] != tensor_bytes(tensor):
        raise SpecError(
            f"expected {tensor_bytes(tensor)} bytes for {tensor.dtype} of shape {tensor.shape}, "
            f"got data_offsets {offsets} of {offsets[1] - offsets[0]} bytes"
        )
    return tensor, offsets[0]


def _require_no_holes(
    tensors: list[TensorSpec], first_bytes: list[int], begin: int, file_bytes: int, path: Path
) -> None:
    """Raise `SpecError` unless the tensors fill the file after the header, without overlaps and holes.

    The format forbids bytes that belong to no tensor, so that a model cannot be a file of another format as well.
    """
    end = begin
    places = zip(first_bytes, map(tensor_bytes, tensors), (tensor.name for tensor in tensors), strict=True)
    for first, size, name in sorted(places):
        if first != end:
            fault = "overlaps the tensor before it" if first < end else "leaves a hole before it"
            raise SpecError(f"{path}: tensor {name!r} {fault}: it begins at byte {first} of the file, not at {end}")
        end += size
    if end != file_bytes:
        raise SpecError(f"{path} has {file_bytes} bytes, but its tensors end at {end}")


def _require_name(name: str) -> None:
    if name == METADATA or not is_text(name):
        raise SpecError(f"a tensor in a safetensors file cannot be called {name!r}")


def _require_metadata(metadata: object) -> None:
    if not isinstance(metadata, Mapping) or not all(map(is_text, [*metadata.keys(), *metadata.values()])):
        raise SpecError(f"expected metadata as an object of strings, got {_short(metadata)}")


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_object(data: bytes | bytearray, path: Path) -> dict[str, Any]:
    """Parse UTF-8 JSON that is one object.

    A key that appears twice, in any object, is refused: parsers disagree on which value counts.

    Args:
        data: The JSON.
        path: The file's name, for errors.

    Returns:
        The object.

    Raises:
        SpecError: The data is not JSON, not an object, or has a key twice.

    >>> parse_object(b'{"a": 1, "a": 2}', Path("x.json"))
    Traceback (most recent call last):
    flcore.errors.SpecError: x.json: 'a' appears twice
    """
    try:
        content = parse_json(data)
    except DuplicateKey as error:
        raise SpecError(f"{path}: {error}") from None
    except ValueError as error:
        raise SpecError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def is_text(value: object) -> bool:
    """Whether a value is a string that UTF-8 can encode. JSON's escapes can spell half of a surrogate pair.

    >>> is_text("é"), is_text("\\ud800"), is_text(3)
    (True, False, False)
    """
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
