"""The index of a model in several files, as Hugging Face has it: `{"weight_map": {tensor: file, ...}, ...}`.

It lies beside its files and is called `NAME.safetensors.index.json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flcore.errors import SpecError
from flcore.model.model_paths import HEAD_BYTES, identify_signature
from flcore.model.safetensors_header import MAX_HEADER_BYTES, is_text, parse_object


def read_index(path: Path) -> dict[str, str]:
    """Return the name of each tensor's file, in the order of the index; none leads out of its directory.

    Raises `SpecError`, naming the file and the tensor, for anything else.
    """
    with path.open("rb") as file:
        data = file.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        raise SpecError(f"{path} is longer than an index's {MAX_HEADER_BYTES} bytes")
    weight_map = _parsed(data, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SpecError(f"{path}: expected a weight_map with the file of each tensor")
    for tensor, file_name in weight_map.items():
        if not is_text(file_name) or not _is_plain(file_name):
            raise SpecError(
                f"{path}: tensor {tensor!r}: expected the name of a file in the same directory, got {file_name!r}"
            )
    return weight_map


def encode_index(weight_map: Mapping[str, str], total_bytes: int) -> bytes:
    """Return an index; `total_bytes` are those of all tensors."""
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_object(data, path)
    except SpecError as error:
        known = identify_signature(data[:HEAD_BYTES])
        raise error if known is None else SpecError(f"{path} is no index, but {known}") from None


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
