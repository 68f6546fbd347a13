"""The foundation of all packages: the root of all errors, the table of dtypes, and the layout of payloads.

Pure Python that imports only the standard library.

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
