"""Inspecting and converting operands on a device: `max_abs`, `inspect`, `encode` and `decode`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flcore_kernels.call_checks import require_encodable
from flcore_kernels.cuda import kernels
from flcore_kernels.cuda.device import Stream
from flcore_kernels.cuda.device_memory import fetched, launch_blocks
from flcore_kernels.cuda.launch import (
    NONE,
    Answers,
    Column,
    Span,
    columns_of,
    cut_rows,
    elements_of_portion,
    launch_rows,
    no_answers,
    no_bad,
)
from flcore_kernels.cuda.ring import Numbers, Ring
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import NotFinite
from flcore_kernels.inspection import Inspection
from flcore_kernels.rows import Rows, require_writable, sizes_of

TILE = 4096
"""A portion of a converted buffer is a multiple of this, except for the last: whole blocks of scales, and aligned."""


def scan(
    ring: Ring, sizes: Sequence[int], groups: Sequence[Sequence[Column]], dtype: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
    """Return the largest finite magnitude of each operand, and its first element that is not finite (`NONE`: none)."""
    kernel, count = kernels.max_abs_kernel(dtype), len(groups[0])

    def launch(span: Span, stream: Stream) -> None:
        blocks = launch_blocks(ring, span.count * kernels.THREADS)
        stream.launch(kernel, blocks, kernels.THREADS, (span.rows, *span.answers))

    def nothing(_: Numbers) -> Answers:
        return [np.zeros(count, np.uint64), np.full(count, NONE, np.uint64)]

    rows = cut_rows(sizes, [column for group in groups for column in group], ring)
    found = [nothing(rows.counts), *launch_rows(ring, rows, launch, operands=groups, initial=nothing)]
    tops, firsts = (np.stack(answers) for answers in zip(*found, strict=True))
    return tops.max(axis=0).view(np.float64), firsts.min(axis=0)


def inspect_buffer(ring: Ring, operand: Any, dtype: str) -> Inspection:
    """Find the first bad element and the largest magnitude (see `Backend.inspect`)."""
    (size,) = sizes_of(operand)
    codes, scales = columns_of(operand, dtype, [size], "operand", ring.device.number)
    (top,), (first,) = scan(ring, [size], [[codes], [scales]] if lookup(dtype).block else [[codes]], dtype)
    return Inspection(-1 if first == NONE else int(first), float(top))


def encode_buffer(ring: Ring, values: Any, out: Any, dtype: str) -> None:
    """Round float32 values to a narrower dtype (see `Backend.encode`)."""
    storage = lookup(dtype)
    source = columns_of(values, "float32", [values.size], "values", ring.device.number)[0]
    codes, scales = columns_of(out, dtype, [values.size], "out", ring.device.number)
    require_writable(out)
    require_encodable(dtype)
    kernel = kernels.quantize_kernel(storage.block) if storage.block else kernels.encode_kernel(dtype)

    def launch(span: Span, stream: Stream) -> None:
        places = [table[0, 0] for table in span.places]
        blocks = launch_blocks(
            ring, -(-span.elements // storage.block) * 32 if storage.block else -(-span.elements // 4)
        )
        stream.launch(kernel, blocks, kernels.THREADS, (*places, np.int64(span.elements), *span.answers))

    writes = [[codes], [scales]] if storage.block else [[codes]]
    rows = _flat_rows(values.size, [source, codes, *([scales] if storage.block else [])], ring)
    initial = no_bad if storage.block else no_answers
    found = launch_rows(ring, rows, launch, operands=[[source]], writes=writes, initial=initial, is_row_alone=True)
    if any((bad != NONE).any() for answers in found for bad in answers):
        first = inspect_buffer(ring, values, "float32").first_bad
        raise NotFinite(0, first, float(fetched(ring, values).reshape(-1)[first]))


def decode_buffer(ring: Ring, operand: Any, out: Any, dtype: str) -> None:
    """Write the float32 values of an operand (see `Backend.decode`)."""
    storage = lookup(dtype)
    codes, scales = columns_of(operand, dtype, [out.size], "operand", ring.device.number)
    target = columns_of(out, "float32", [out.size], "out", ring.device.number)[0]
    require_writable(out)
    kernel = kernels.decode_kernel(dtype)

    def launch(span: Span, stream: Stream) -> None:
        source, written = span.places[0][0, 0], span.places[-1][0, 0]
        factors = span.places[1][0, 0] if storage.block else source
        blocks = launch_blocks(ring, -(-span.elements // 4))
        stream.launch(kernel, blocks, kernels.THREADS, (source, factors, written, np.int64(span.elements)))

    operands = [[codes], [scales]] if storage.block else [[codes]]
    rows = _flat_rows(out.size, [codes, target, *([scales] if storage.block else [])], ring)
    launch_rows(ring, rows, launch, operands=operands, writes=[[target]], is_row_alone=True)


def _flat_rows(size: int, columns: Sequence[Column], ring: Ring) -> Rows:
    """Cut a buffer in host memory into rows of whole tiles. One on the device is a single row."""
    return Rows.cut([size], max(TILE, elements_of_portion(columns, ring) // TILE * TILE))
