"""A staged update on disk, opened as Arrow tables. `open_update` imports pyarrow only when it is called."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from flcore_layout import DTYPES
from flcore_transport.piece_format import arrow_message_bytes, arrow_metadata, arrow_schema_message, piece_elements

from flcore.aggregation.staging import DESCRIPTION, DESCRIPTION_FORMAT, chunk_offset, segment_path
from flcore.errors import CorruptUpdate, SpecError, UpdateError
from flcore.model.model_paths import PathLike
from flcore.model.safetensors_header import is_text
from flcore.model.spec import ModelSpec, TensorSpec
from flcore.model.wire_format import WireFormat
from flcore.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa


class UpdateTables(Mapping[str, "pa.Table"]):
    """An update as Arrow tables, by the names of its tensors. Made by `flcore.open_update`.

    Attributes:
        client: The client that sent the update.
        weight: Its weight.
        spec: The model's tensors, as `flcore.ModelSpec`.
        segments: One table for each dtype of the model, with all its tensors and the zeros between them.
    """

    def __init__(self, client: str, weight: float, wire_format: WireFormat, segments: "tuple[pa.Table, ...]") -> None:
        self.client, self.weight, self.spec, self.segments = client, weight, wire_format.spec, segments
        self._wire_format = wire_format

    def __getitem__(self, name: str) -> "pa.Table":
        segment, span = self._wire_format.tensor_spans[name]
        block = DTYPES[self._wire_format.dtypes[segment]].block or 1  # a tensor begins with a block
        rows = self.segments[segment].slice(span.start // block, -(-span.tensor.size // block))
        shape = json.dumps(span.tensor.shape)
        return rows.replace_schema_metadata(
            {"flcore.tensor": name, "flcore.shape": shape, "flcore.dtype": span.tensor.dtype}
        )

    def __iter__(self) -> Iterator[str]:
        return (tensor.name for tensor in self.spec.tensors)

    def __len__(self) -> int:
        return len(self.spec.tensors)

    def __repr__(self) -> str:
        return f"UpdateTables(client={self.client!r}, weight={self.weight:g}, {len(self)} tensors)"


def open_update(path: PathLike) -> UpdateTables:
    """Open a staged update as Arrow tables, memory-mapped and without a copy.

    A server stages updates on disk where its budget of memory is short: in a run's directory under `.staging`, one
    directory for each update, until the round's updates have been folded. An update can be opened once it is committed.
    Open tables stay readable after the server has removed the files.

    A tensor's table has its elements in C order, and the tensor's name, shape and dtype in its schema's metadata
    (`flcore.tensor`, `flcore.shape`, a JSON list, and `flcore.dtype`). Columns depend on the dtype in which the tensor
    was sent, which is in the metadata of the last column (`flcore.dtype`):

    - All but the following: one column `value` of the Arrow type of the same name.
    - `bool`: `value` is uint8, 0 or 1. Arrow would pack eight of them into a byte.
    - `bfloat16`: `value` is uint16, the bits of the number, for which Arrow has no type. In NumPy, they become numbers
      by `column.to_numpy().view(ml_dtypes.bfloat16)`.
    - `int8[B]`, quantized: a row for each block of B elements, with the columns `scale`, float32, and `codes`, a list
      of B int8. An element is its code times the scale. The last block is filled up with zeros: use the first elements
      only, as many as the shape has.

    Args:
        path: The directory of one update, such as `runs/NAME/.staging/1`.

    Returns:
        A mapping from each tensor's name to its `pyarrow.Table`, with `client`, `weight`, `spec` and `segments`.

    Raises:
        UpdateError: The directory is no update, is an update that is not committed yet, or was written by another
            version of flcore.
        CorruptUpdate: A file is missing, truncated or altered. The error names the tensor where it is known.
        OSError: The directory does not exist, or a file cannot be read.

    Example:
        >>> update = flcore.open_update("runs/myjob/.staging/1")  # doctest: +SKIP
        >>> update.client, update["layer.weight"]["value"].to_numpy()  # doctest: +SKIP
    """
    directory = Path(path)
    client, weight, wire_format = _described(directory)
    segments = tuple(_segment(directory, wire_format, number, client) for number in range(len(wire_format.dtypes)))
    return UpdateTables(client, weight, wire_format, segments)


def _described(directory: Path) -> tuple[str, float, WireFormat]:
    """Read an update's description: its client, weight and wire format."""
    file = directory / DESCRIPTION
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        directory.stat()  # OSError where nothing is there
        if segment_path(directory, 0).exists():
            raise UpdateError(
                f"expected a committed update, got {directory}, of which only a part has come; open it once its client "
                "has answered"
            ) from None
        raise UpdateError(
            f"expected the directory of a staged update, which holds {DESCRIPTION}, got {directory}; give one such as "
            "runs/NAME/.staging/1"
        ) from None
    try:
        described = parse_json(content)
        if described["format"] != DESCRIPTION_FORMAT:
            raise UpdateError(
                f"expected format {DESCRIPTION_FORMAT}, got {described['format']!r} in {file}: another version of "
                "flcore wrote it; open it with that version"
            )
        tensors = [TensorSpec(name, dtype, tuple(map(index, shape))) for name, dtype, shape in described["tensors"]]
        wire_format = WireFormat(ModelSpec(tuple(tensors)), tuple(described["segments"]))
        _require_dtypes(wire_format)
        client, weight = described["client"], described["weight"]
        if not all(map(is_text, (client, *(tensor.name for tensor in tensors)))):
            raise ValueError("the name of the client or of a tensor is no text that UTF-8 can encode")
        if type(weight) not in (int, float) or not 0 <= weight < math.inf or float(weight) != weight:
            raise ValueError(f"the weight {weight!r} is not of an update")
        return client, float(weight), wire_format
    except (ValueError, TypeError, KeyError, OverflowError, SpecError) as error:
        raise CorruptUpdate(
            f"expected the description of an update in {file}, got an altered one: {error!r}"
        ) from error


def _require_dtypes(wire_format: WireFormat) -> None:
    """Raise `ValueError` unless each segment has the model's dtype or a narrower one that the wire allows."""
    expected = [{segment.dtype} for segment in wire_format.spec.segments]
    for dtype in DTYPES:
        for allowed, wire_dtype in zip(expected, WireFormat.compressed(wire_format.spec, dtype).dtypes, strict=True):
            allowed.add(wire_dtype)
    if len(wire_format.dtypes) != len(expected) or any(
        dtype not in allowed for dtype, allowed in zip(wire_format.dtypes, expected, strict=True)
    ):
        raise ValueError(f"the segments' dtypes {wire_format.dtypes} are not the model's")


def _segment(directory: Path, wire_format: WireFormat, number: int, client: str) -> "pa.Table":
    """Open a segment as a table, after comparing its size, schema and chunks' metadata with the expected bytes."""
    import pyarrow as pa

    path, dtype, elements = (
        segment_path(directory, number),
        wire_format.dtypes[number],
        wire_format.spec.segments[number].elements,
    )
    schema = arrow_schema_message(dtype)
    expected = len(schema)
    if elements:
        last = wire_format.piece_at(number, elements - 1)
        expected = chunk_offset(last) + arrow_message_bytes(dtype, last.count)
    try:
        if (size := path.stat().st_size) != expected:
            raise CorruptUpdate(f"expected {expected} bytes, got {size} in {path}: truncated or altered", client=client)
        content = pa.memory_map(os.fspath(path)).read_buffer()
    except FileNotFoundError:
        raise CorruptUpdate(f"expected {path}, got no such file; it may have been removed", client=client) from None
    view = memoryview(content).cast("B")
    if view[: len(schema)] != schema:
        raise CorruptUpdate(f"expected the schema of {dtype} in {path}, got another one", client=client)
    for first in range(0, elements, piece_elements(dtype)):
        chunk = wire_format.piece_at(number, first)
        offset, metadata = chunk_offset(chunk), arrow_metadata(dtype, chunk.count)
        if view[offset : offset + len(metadata)] != metadata:
            tensor, _ = wire_format.spec.segments[number].locate(first)
            found = "altered bytes" if any(view[offset : offset + len(metadata)]) else "zeros: it was never written"
            raise CorruptUpdate(
                f"expected a chunk at byte {offset} of {path}, got {found}", client=client, tensor=tensor.name
            )
    with pa.ipc.open_stream(content) as reader:
        return reader.read_all()
