"""What all packages share: the root of the errors, the table of dtypes, and how a payload is laid out.

The lowest package: pure Python that imports nothing but the standard library.

    >>> from flcore_layout import DTYPES
    >>> DTYPES["bfloat16"].itemsize, DTYPES["bfloat16"].safetensors
    (2, 'BF16')
"""

from flcore_layout.dtypes import ALIASES, DTYPES, Dtype, UnknownDtypeName, canonical_name
from flcore_layout.errors import FlcoreError
from flcore_layout.layout import ALIGNMENT, Layout, PayloadPart, Segment, SegmentRange, aligned

__all__ = [
    "ALIASES",
    "ALIGNMENT",
    "DTYPES",
    "Dtype",
    "FlcoreError",
    "Layout",
    "PayloadPart",
    "Segment",
    "SegmentRange",
    "UnknownDtypeName",
    "aligned",
    "canonical_name",
]
