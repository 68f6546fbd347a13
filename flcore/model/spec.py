"""The spec of a model: the names, dtypes and shapes of its tensors, and their places in flat segments.

The tensors of one dtype share a *segment*, one flat array with the tensors in order. Each tensor starts at a multiple
of 256 elements. The gaps between tensors, and after the last one, are zero. The transport and the kernels know only
segments: pieces and chunks are ranges of a segment.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_layout import aligned

from flcore.errors import SpecError, TensorMismatch
from flcore.model.arrays import AnyArrays, dtype_and_shape, flatten
from flcore.model.dtypes import DTYPES, dtype_name

MAX_ELEMENTS = 2**48
"""The bound of a tensor's elements: far above any real one, and low enough for byte counts in 64 bits."""

MAX_RANK = 64
"""NumPy's bound of dimensions."""

Remedy = Callable[[str, str], str]
"""Takes the expected dtype and the present one, and returns advice on the conversion; "" if there is none."""


def _advise_astype(expected: str, _: str) -> str:
    return f"astype({expected!r}) converts it"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, dtype and shape of one tensor.

    Attributes:
        name: The name, 1 to 1024 characters.
        dtype: A key of `DTYPES`.
        shape: The extents, up to 64. `()` is a scalar. A tensor with a 0 in its shape has no elements.

    Raises:
        SpecError: An attribute is out of range.

    Example:
        >>> TensorSpec("layer.weight", "float32", (3, 4)).size
        12
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 1024:
            raise SpecError(f"a tensor's name is a string of 1 to 1024 characters, not {self.name!r}")
        if self.dtype not in DTYPES:
            raise SpecError(f"tensor {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_RANK or any(not 0 <= extent <= MAX_ELEMENTS for extent in self.shape):
            raise SpecError(f"tensor {self.name!r}: a shape is at most {MAX_RANK} whole numbers, 0 to {MAX_ELEMENTS}")
        if math.prod(extent or 1 for extent in self.shape) > MAX_ELEMENTS:
            # NumPy too refuses an empty array whose other extents are too large.
            raise SpecError(f"tensor {self.name!r}: its shape has more than {MAX_ELEMENTS} elements")

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """A tensor's place in its segment: elements `start` to `stop`."""

    tensor: TensorSpec
    start: int

    @property
    def stop(self) -> int:
        """One past the tensor's last element."""
        return self.start + self.tensor.size


@dataclass(frozen=True)
class SegmentSpec:
    """The segment of all tensors of one dtype. `elements` includes the gaps, and is a multiple of 256."""

    dtype: str
    spans: tuple[TensorSpan, ...]
    elements: int

    @cached_property
    def _starts(self) -> list[int]:
        return [span.start for span in self.spans]

    @cached_property
    def _borders(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The starts and stops of all tensors with elements, as arrays, for `gaps`."""
        filled = [span for span in self.spans if span.tensor.size]
        return np.array([span.start for span in filled], np.int64), np.array([span.stop for span in filled], np.int64)

    def overlapping(self, first: int, stop: int) -> Iterator[TensorSpan]:
        """Yield the spans that overlap the range `first` to `stop`, in order. Tensors without elements are left out."""
        for index in self.span_indices(first, stop):
            yield self.spans[index]

    def span_indices(self, first: int, stop: int) -> Iterator[int]:
        """Yield the indices of the spans that overlap the range `first` to `stop`."""
        for index in range(max(0, bisect_right(self._starts, first) - 1), len(self.spans)):
            span = self.spans[index]
            if span.start >= stop:
                return
            if span.stop > first and span.tensor.size:
                yield index

    def require_range(self, first: int, stop: int) -> None:
        """Raise `SpecError` unless elements `first` to `stop` lie in this segment."""
        if not 0 <= first <= stop <= self.elements:
            raise SpecError(f"expected a range of the {self.elements} {self.dtype} elements, got {first} to {stop}")

    def gaps(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the gaps in the range `first` to `stop` as `[start, stop, start, stop, ...]`; none is empty.

        Vectorized, because a segment may have tens of thousands of tensors: a gap runs from the stop of each tensor to
        the start of the next one, both clipped to the range.
        """
        starts, stops = self._borders
        low, high = int(np.searchsorted(starts, first, "right")) - 1, int(np.searchsorted(starts, stop, "left"))
        begins = np.clip(stops[low:high], first, stop)
        ends = np.clip(np.append(starts[low + 1 : high], stop), first, stop)
        is_gap = begins < ends
        return np.stack([begins[is_gap], ends[is_gap]], axis=1).reshape(-1)

    def locate(self, element: int) -> tuple[TensorSpec, int]:
        """Return the tensor of an element of the segment, and the element's index in the tensor.

        An element of a gap belongs to the tensor before it; its index is then not less than the tensor's size.
        """
        span = self.spans[bisect_right(self._starts, element) - 1]
        return span.tensor, element - span.start


@dataclass(frozen=True)
class ModelSpec:
    """The spec of a model: an ordered list of at least one tensor, with unique names.

    Attributes:
        tensors: The tensors.

    Raises:
        SpecError: There is no tensor, or a name appears twice.

    Example:
        >>> spec = ModelSpec.of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)})
        >>> [(span.tensor.name, span.start) for span in spec.segments[0].spans]
        [('w', 0), ('b', 256)]
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise SpecError("a model has at least one tensor")
        seen: set[str] = set()
        for tensor in self.tensors:
            if tensor.name in seen:
                raise SpecError(f"tensor {tensor.name!r} appears twice")
            seen.add(tensor.name)

    @classmethod
    def of(cls, arrays: AnyArrays) -> "ModelSpec":
        """Return the spec of named arrays.

        Args:
            arrays: Arrays of any library by name, nested or not. Nested ones get their full names. Values on a device
                are not copied.

        Returns:
            The spec, with the tensors in the order of the arrays.

        Raises:
            SpecError: A value is not an array, or its dtype or name is not supported.
        """
        tensors = []
        for name, array in dict[Any, Any](flatten(arrays)).items():
            if not isinstance(name, str):
                raise SpecError(f"a tensor's name is a string, not {name!r}")
            dtype, shape = dtype_and_shape(array, name)
            try:
                known = dtype_name(dtype)
            except SpecError as error:
                raise SpecError(f"tensor {name!r}: {error}") from None
            tensors.append(TensorSpec(name, known, shape))
        return cls(tuple(tensors))

    @cached_property
    def segments(self) -> tuple[SegmentSpec, ...]:
        """One segment per dtype, in the order in which the dtypes first appear."""
        spans: dict[str, list[TensorSpan]] = {}
        ends: dict[str, int] = {}
        for tensor in self.tensors:
            start = ends.get(tensor.dtype, 0)
            spans.setdefault(tensor.dtype, []).append(TensorSpan(tensor, start))
            ends[tensor.dtype] = start + aligned(tensor.size)
        return tuple(SegmentSpec(dtype, tuple(spans[dtype]), ends[dtype]) for dtype in spans)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 digest of the canonical JSON of the tensors, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """The bytes of all segments, gaps included."""
        return sum(segment.elements * DTYPES[segment.dtype].itemsize for segment in self.segments)

    @property
    def parameters(self) -> int:
        """The number of elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    def to_json(self) -> str:
        """Return the canonical JSON: a list of `[name, dtype, [extent, ...]]`."""
        return json.dumps(
            [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in self.tensors], separators=(",", ":")
        )

    def require_match(
        self, other: "ModelSpec", *, client: str = "", sender: str = "client", remedy: Remedy = _advise_astype
    ) -> None:
        """Raise an error unless another model has the same tensors, in any order.

        Args:
            other: The spec of the other model.
            client: The other model's owner, for the error (see `UpdateError`).
            sender: The word for `client` in the error.
            remedy: Returns advice for the error if a dtype differs.

        Raises:
            TensorMismatch: A tensor is missing, unknown, or of another dtype or shape. Names the first one.
        """
        theirs = {tensor.name: tensor for tensor in other.tensors}
        for tensor in self.tensors:
            found = theirs.pop(tensor.name, None)
            if found is None:
                raise TensorMismatch("it is missing", client=client, tensor=tensor.name, sender=sender)
            if found != tensor:
                advice = "" if found.dtype == tensor.dtype else remedy(tensor.dtype, found.dtype)
                raise TensorMismatch(
                    f"expected {tensor.dtype} of shape {tensor.shape}, got {found.dtype} of shape {found.shape}"
                    + (advice and f" ({advice})"),
                    client=client,
                    tensor=tensor.name,
                    sender=sender,
                )
        for name in theirs:
            raise TensorMismatch("the model has no tensor of this name", client=client, tensor=name, sender=sender)
