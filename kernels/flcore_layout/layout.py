"""The layout of a payload: flat segments, each of one dtype, with tensors and pieces at multiples of `ALIGNMENT`."""

from dataclasses import dataclass

ALIGNMENT = 256
"""Tensors, segments, pieces and rows of kernels begin at multiples of this many elements.

256 elements are whole blocks of every quantized dtype and of an exact sum, so no cut splits a scale or a level.
"""


def aligned(elements: int) -> int:
    """Return the smallest multiple of `ALIGNMENT` that is not less than `elements`.

    >>> aligned(0), aligned(1), aligned(256)
    (0, 256, 256)
    """
    return -(-elements // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Segment:
    """A flat array of `elements` elements of one dtype. `elements` is a multiple of `ALIGNMENT`."""

    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class PayloadPart:
    """A named part of a payload, such as the model: a list of segments."""

    name: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a payload. A payload without parts has no pieces; an answer of metrics alone is one."""

    parts: tuple[PayloadPart, ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentRange:
    """`count` elements of one segment, from element `first` on. `segment` and `part` are indices into a `Layout`."""

    segment: int
    dtype: str
    first: int
    count: int
    part: int = 0
