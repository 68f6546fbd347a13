"""A model whose floats are to have another dtype: where elements of its segments belong then."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy.typing as npt

from flcore.errors import SpecError
from flcore.model.chunks import ChunkSink
from flcore.model.dtypes import DTYPES, INTEGERS
from flcore.model.spec import ModelSpec


@dataclass(frozen=True)
class DtypeConversion:
    """A model as it is, and as it is to be: `dtypes` are those that the segments of `source` get."""

    source: ModelSpec
    target: ModelSpec
    dtypes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all segments of the source, in the dtypes of the target."""
        pairs = zip(self.source.segments, self.dtypes, strict=True)
        return sum(segment.elements * DTYPES[dtype].itemsize for segment, dtype in pairs)

    @cached_property
    def _positions(self) -> dict[str, tuple[int, int]]:
        """The segment of each tensor of the target, and its first element there."""
        return {
            span.tensor.name: (index, span.start)
            for index, segment in enumerate(self.target.segments)
            for span in segment.spans
        }

    def put(self, sink: ChunkSink, segment: int, first: int, values: npt.NDArray[Any]) -> None:
        """Put the values of a segment of the source, from `first` on, where they belong in the target.

        Segments that become one are put tensor by tensor, with the gap behind each.
        """
        spec, stop, dtype = self.source.segments[segment], first + values.size, self.dtypes[segment]
        if self.dtypes.count(dtype) == 1:
            sink.put([each.dtype for each in self.target.segments].index(dtype), first, values)
            return
        for span, end in zip(spec.spans, [*(span.start for span in spec.spans[1:]), spec.elements], strict=True):
            begin, until = max(first, span.start), min(stop, end)
            if begin < until:
                index, start = self._positions[span.tensor.name]
                sink.put(index, start + begin - span.start, values[begin - first : until - first])


def plan_dtype_conversion(spec: ModelSpec, dtype: str | None) -> DtypeConversion:
    """Return a model with another dtype for its floats (None: as it is), or raise `SpecError`.

    >>> import numpy as np
    >>> spec = ModelSpec.of({"w": np.zeros(3, np.float32), "n": np.zeros(2, np.int64)})
    >>> [tensor.dtype for tensor in plan_dtype_conversion(spec, "bfloat16").target.tensors]
    ['bfloat16', 'int64']
    """
    floats = [name for name in DTYPES if name not in INTEGERS]
    if dtype is not None and dtype not in floats:
        raise SpecError(f"floats become one of {', '.join(floats)}, not {dtype!r}")

    def becomes(own: str) -> str:
        return dtype if dtype is not None and own in floats else own

    target = ModelSpec(tuple(replace(tensor, dtype=becomes(tensor.dtype)) for tensor in spec.tensors))
    return DtypeConversion(spec, target, tuple(becomes(segment.dtype) for segment in spec.segments))
