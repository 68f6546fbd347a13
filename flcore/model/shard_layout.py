"""Where each tensor's bytes lie: in which file, from which byte on, and the index that names the files.

The index is that of Hugging Face, `{"weight_map": {tensor: file, ...}, ...}`. It lies beside the files of a model in
several files and is called `NAME.safetensors.index.json`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flcore.errors import SpecError
from flcore.model.model_paths import HEAD_BYTES, identify_signature
from flcore.model.safetensors_header import MAX_HEADER_BYTES, Header, is_text, parse_object, plan_header, tensor_bytes
from flcore.model.spec import ModelSpec, TensorSpec

SHARD_BYTES = 5_000_000_000
"""How large a file becomes, as with Hugging Face: a larger model is cut into several, never within a tensor."""


class TensorLocation(NamedTuple):
    """A tensor's file, by its number, and the tensor's first byte in it."""

    tensor: TensorSpec
    file: int
    begin: int


@dataclass(frozen=True)
class ShardLayout:
    """A model's files, by number, and what lies in them. `has_index` tells a model in one file from an index's."""

    spec: ModelSpec
    headers: tuple[Header, ...]
    has_index: bool

    @cached_property
    def locations(self) -> dict[str, TensorLocation]:
        """Where each tensor is, by name."""
        return {
            tensor.name: TensorLocation(tensor, number, begin)
            for number, header in enumerate(self.headers)
            for tensor, begin in zip(header.tensors, header.first_bytes, strict=True)
        }

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the first file."""
        return self.headers[0].metadata

    def byte_ranges(
        self, segment: int, first: int, values: npt.NDArray[Any]
    ) -> Iterator[tuple[int, int, list[memoryview]]]:
        """Yield which bytes of `values`, a segment's elements from `first` on, are which bytes of which file.

        Each is a file's number, an offset in the file, and views of `values` that follow each other there; gaps between
        tensors are in none.
        """
        spec, data, itemsize = self.spec.segments[segment], values.view(np.uint8).data, values.itemsize
        views: list[memoryview] = []
        number = start = end = -1
        for span in spec.overlapping(first, first + values.size):
            begin, stop = max(span.start, first), min(span.stop, first + values.size)
            place = self.locations[span.tensor.name]
            offset = place.begin + (begin - span.start) * itemsize
            if (number, end) != (place.file, offset):
                if views:
                    yield number, start, views
                number, start, views = place.file, offset, []
            views.append(data[(begin - first) * itemsize : (stop - first) * itemsize])
            end = offset + (stop - begin) * itemsize
        if views:
            yield number, start, views


def plan_shards(
    spec: ModelSpec, shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] | None = None
) -> tuple[ShardLayout, list[bytes]]:
    """Spread a model over files of at most `shard_bytes` of values, in the order of its tensors.

    Only a tensor that is larger by itself makes a larger file. Returns the plan, and the first bytes of each file.

    >>> spec = ModelSpec.of({name: np.zeros(3) for name in "abc"})
    >>> [header.tensors[0].name for header in plan_shards(spec, shard_bytes=48)[0].headers]
    ['a', 'c']
    """
    if shard_bytes < 1:
        raise SpecError(f"expected shard_bytes of 1 or more, got {shard_bytes}")
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in spec.tensors:
        size = tensor_bytes(tensor)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return _plan_files(spec, [(group, metadata or {}) for group in groups], len(groups) > 1)


def plan_like(spec: ModelSpec, other: ShardLayout) -> tuple[ShardLayout, list[bytes]]:
    """Spread a model over files as another one of the same names is, with the metadata of its files.

    >>> shards = plan_shards(ModelSpec.of({name: np.zeros(3) for name in "abc"}), shard_bytes=48)[0]
    >>> alike, _ = plan_like(ModelSpec.of({name: np.zeros(3, np.float32) for name in "abc"}), shards)
    >>> [header.tensors[0].name for header in alike.headers]
    ['a', 'c']
    """
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    files = [([tensors[tensor.name] for tensor in header.tensors], header.metadata) for header in other.headers]
    return _plan_files(spec, files, other.has_index)


def _plan_files(
    spec: ModelSpec, files: Sequence[tuple[Sequence[TensorSpec], Mapping[str, str]]], has_index: bool
) -> tuple[ShardLayout, list[bytes]]:
    """Return the plan of files with these tensors and metadata, and the first bytes of each."""
    planned = [plan_header(tensors, metadata) for tensors, metadata in files]
    return ShardLayout(spec, tuple(header for header, _ in planned), has_index), [head for _, head in planned]


def total_bytes(spec: ModelSpec) -> int:
    """Return the bytes of a model's values in files, where there are no gaps."""
    return sum(map(tensor_bytes, spec.tensors))


def read_index(path: Path) -> dict[str, str]:
    """Return the name of each tensor's file, in the order of the index; none leads out of its directory.

    Raises `SpecError`, naming the file and the tensor, for anything else.
    """
    with path.open("rb") as file:
        data = file.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        raise SpecError(f"{path} is longer than an index's {MAX_HEADER_BYTES} bytes")
    weight_map = _parse_index(data, path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SpecError(f"{path}: expected a weight_map with the file of each tensor")
    for tensor, file_name in weight_map.items():
        if not is_text(file_name) or not _is_plain(file_name):
            raise SpecError(
                f"{path}: tensor {tensor!r}: expected the name of a file in the same directory, got {file_name!r}"
            )
    return weight_map


def encode_index(weight_map: Mapping[str, str], nbytes: int) -> bytes:
    """Return an index; `nbytes` are those of the values of all tensors."""
    content = {"metadata": {"total_size": nbytes}, "weight_map": dict(weight_map)}
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _parse_index(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_object(data, path)
    except SpecError as error:
        known = identify_signature(data[:HEAD_BYTES])
        raise error if known is None else SpecError(f"{path} is no index, but {known}") from None


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
