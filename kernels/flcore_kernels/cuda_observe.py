"""Looking at parts and converting them on a device: `inspect`, `encode` and `decode`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flcore_kernels import cuda_kernels
from flcore_kernels.admission import require_encodable
from flcore_kernels.cuda_device import Stream
from flcore_kernels.cuda_memory import fetched, launch_blocks
from flcore_kernels.cuda_pieces import (
    NONE,
    Answers,
    Column,
    Span,
    columns_of,
    elements_of_piece,
    no_answers,
    no_bad,
    work,
)
from flcore_kernels.cuda_ring import Numbers, Ring
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import NotFinite
from flcore_kernels.inspection import TILE, Inspection
from flcore_kernels.rows import Rows, require_writable, sizes_of

LANES = 16
"""Threads that look at a tile together."""


def inspect_part(ring: Ring, part: Any, dtype: str) -> Inspection:
    """Look at every element once (see `Backend.inspect`)."""
    row = lookup(dtype)
    (size,) = sizes_of(part)
    codes, scales = columns_of(part, dtype, [size], "part", ring.device.number)
    kernel = cuda_kernels.inspect_kernel(dtype)

    def tiles(counts: Numbers) -> Answers:
        count = -(-int(counts.sum()) // TILE)
        return [np.zeros(count), np.full(count, NONE, np.uint64), np.zeros(count)]

    def launch(span: Span, stream: Stream) -> None:
        count = -(-span.elements // TILE)
        first, last = span.places[0][0, 0], span.places[-1][0, 0]
        arguments = first, last, np.int64(0), np.int64(count), np.int64(span.elements), *span.answers
        stream.launch(kernel, launch_blocks(ring, count * LANES), cuda_kernels.THREADS, arguments)

    groups = [[codes], [scales]] if row.block else [[codes]]
    rows = _flat_rows(size, [codes, *([scales] if row.block else [])], ring)
    found = work(ring, rows, launch, parts=groups, initial=tiles, is_row_alone=True)
    top = max((float(tops.max(initial=0.0)) for tops, _, _ in found), default=0.0)
    squares = np.concatenate([np.zeros(0), *(squares for _, _, squares in found)])
    bad = [
        int(start) + int(first)
        for start, (_, firsts, _) in zip(rows.starts, found, strict=True)
        for first in firsts[firsts != NONE]
    ]
    return Inspection(min(bad, default=-1), top, squares)


def encode_part(ring: Ring, values: Any, out: Any, dtype: str) -> None:
    """Round float32 values to a narrower dtype (see `Backend.encode`)."""
    row = lookup(dtype)
    source = columns_of(values, "float32", [values.size], "values", ring.device.number)[0]
    codes, scales = columns_of(out, dtype, [values.size], "out", ring.device.number)
    require_writable(out)
    require_encodable(dtype)
    kernel = cuda_kernels.quantize_kernel(row.block) if row.block else cuda_kernels.encode_kernel(dtype)

    def launch(span: Span, stream: Stream) -> None:
        places = [table[0, 0] for table in span.places]
        blocks = launch_blocks(ring, -(-span.elements // row.block) * 32 if row.block else -(-span.elements // 4))
        stream.launch(kernel, blocks, cuda_kernels.THREADS, (*places, np.int64(span.elements), *span.answers))

    writes = [[codes], [scales]] if row.block else [[codes]]
    rows = _flat_rows(values.size, [source, codes, *([scales] if row.block else [])], ring)
    initial = no_bad if row.block else no_answers
    found = work(ring, rows, launch, parts=[[source]], writes=writes, initial=initial, is_row_alone=True)
    if any((bad != NONE).any() for answers in found for bad in answers):
        first = inspect_part(ring, values, "float32").first_bad
        raise NotFinite(0, first, float(fetched(ring, values).reshape(-1)[first]))


def decode_part(ring: Ring, part: Any, out: Any, dtype: str) -> None:
    """Write the float32 values of a part (see `Backend.decode`)."""
    row = lookup(dtype)
    codes, scales = columns_of(part, dtype, [out.size], "part", ring.device.number)
    target = columns_of(out, "float32", [out.size], "out", ring.device.number)[0]
    require_writable(out)
    kernel = cuda_kernels.decode_kernel(dtype)

    def launch(span: Span, stream: Stream) -> None:
        source, written = span.places[0][0, 0], span.places[-1][0, 0]
        beside = span.places[1][0, 0] if row.block else source
        blocks = launch_blocks(ring, -(-span.elements // 4))
        stream.launch(kernel, blocks, cuda_kernels.THREADS, (source, beside, written, np.int64(span.elements)))

    parts = [[codes], [scales]] if row.block else [[codes]]
    rows = _flat_rows(out.size, [codes, target, *([scales] if row.block else [])], ring)
    work(ring, rows, launch, parts=parts, writes=[[target]], is_row_alone=True)


def _flat_rows(size: int, columns: Sequence[Column], ring: Ring) -> Rows:
    """Cut a buffer into pieces of whole tiles; not at all where it is on the device."""
    return Rows.cut([size], max(TILE, elements_of_piece(columns, ring) // TILE * TILE))
