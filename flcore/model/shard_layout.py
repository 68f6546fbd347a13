"""The layout of a model in files (shards): the file and the offset of each tensor, and the index of several files.

The index is Hugging Face's `NAME.safetensors.index.json`, `{"weight_map": {tensor: file, ...}, ...}`, beside the files.
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
"""The default size of a shard, as in Hugging Face's libraries. A tensor is never split."""


class TensorLocation(NamedTuple):
    """A tensor's place: the number of its file, and the offset of its first byte."""

    tensor: TensorSpec
    file: int
    begin: int


@dataclass(frozen=True)
class ShardLayout:
    """The files of a model.

    Attributes:
        spec: The model.
        headers: The header of each file.
        has_index: Whether there is an index. Even one file may have one.
    """

    spec: ModelSpec
    headers: tuple[Header, ...]
    has_index: bool

    @cached_property
    def locations(self) -> dict[str, TensorLocation]:
        """The place of each tensor, by name."""
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
        """Map a range of a segment to ranges of files.

        A segment has gaps between tensors, a file has none. So tensors that follow each other in a file become one
        range of the file, with one view for each tensor: one preadv or pwritev for many small tensors.

        Args:
            segment: The index of the segment.
            first: The first element.
            values: The elements of the range, gaps included.

        Yields:
            The number of a file, an offset in it, and the views of `values` whose bytes begin there. Gaps are in none.
        """
        spec, data, itemsize = self.spec.segments[segment], values.view(np.uint8).data, values.itemsize
        views: list[memoryview] = []
        number = start = end = -1
        for span in spec.overlapping(first, first + values.size):
            begin, stop = max(span.start, first), min(span.stop, first + values.size)
            location = self.locations[span.tensor.name]
            offset = location.begin + (begin - span.start) * itemsize
            if (number, end) != (location.file, offset):  # not right after the last view: begin another range
                if views:
                    yield number, start, views
                number, start, views = location.file, offset, []
            views.append(data[(begin - first) * itemsize : (stop - first) * itemsize])
            end = offset + (stop - begin) * itemsize
        if views:
            yield number, start, views


def plan_shards(
    spec: ModelSpec, shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] | None = None
) -> tuple[ShardLayout, list[bytes]]:
    """Plan the files of a new model, filled in the order of its tensors.

    Args:
        spec: The model.
        shard_bytes: The largest size of a file's values. A larger tensor gets a file of its own.
        metadata: The metadata of each file. Default: None, no metadata.

    Returns:
        The layout, and the bytes of each file before its first tensor.

    Raises:
        SpecError: `shard_bytes` is below 1, or a name or the metadata is not valid in a header.

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
    """Plan the files of a new model like those of another one: the same tensors and metadata in each file.

    Args:
        spec: The model.
        other: The files of a model with the same names.

    Returns:
        The layout, and the bytes of each file before its first tensor.

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
    """Return the layout of files with these tensors and metadata, and the bytes of each before its first tensor."""
    planned = [plan_header(tensors, metadata) for tensors, metadata in files]
    return ShardLayout(spec, tuple(header for header, _ in planned), has_index), [head for _, head in planned]


def total_bytes(spec: ModelSpec) -> int:
    """Return the size of a model's values in files, where there are no gaps."""
    return sum(map(tensor_bytes, spec.tensors))


def read_index(path: Path) -> dict[str, str]:
    """Read the index of a model in several files.

    Args:
        path: The index.

    Returns:
        The name of each tensor's file, in the order of the index. Each is a plain name in the index's directory.

    Raises:
        SpecError: The index is invalid, or names a file in another directory. Names the file and the tensor.
    """
    with path.open("rb") as file:
        data = file.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        raise SpecError(f"{path}: expected an index of at most {MAX_HEADER_BYTES} bytes, got a longer file")
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
    """Return the bytes of an index. `nbytes` is the size of all tensors' values."""
    content = {"metadata": {"total_size": nbytes}, "weight_map": dict(weight_map)}
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


def _parse_index(data: bytes, path: Path) -> dict[str, Any]:
    try:
        return parse_object(data, path)
    except SpecError as error:
        description = identify_signature(data[:HEAD_BYTES])
        raise error if description is None else SpecError(f"{path} is no index, but {description}") from None


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same directory: an index must not lead to other files of the machine."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
