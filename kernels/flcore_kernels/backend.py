"""What a device must offer, and what goes in and out.

A *buffer* is a contiguous array of a dtype's storage (`storage_dtype`), or `Quantized`. An *operand* is a buffer, or a
list of them: the tensors of one client, laid over the total one after another, each at the next multiple of 256
elements. An operand may be read-only, mapped from a file, and at any address; for a device's backend also on the
device, an array of whatever library.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from flcore_kernels.inspection import Inspection
from flcore_kernels.totals import Total

Array = npt.NDArray[Any]


class Quantized(NamedTuple):
    """int8 codes and the float32 scale of each block of them; an element's value is fl32(scale · code)."""

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


Buffer = Array | Quantized
Operand = Buffer | Sequence[Buffer]


class Backend(Protocol):
    """The verbs of aggregation on one device.

    `dtype` is a key of `STORAGE`, and `accumulate` one of `float32`, `float64` and `exact`. All verbs may be called
    from any thread; one total is changed by one call at a time. Buffers that do not fit raise `BufferMismatch`.
    """

    name: str

    def total(self, elements: int, accumulate: str) -> Total:
        """Return an empty total."""
        ...

    def fold(self, total: Total, operands: Sequence[Operand], weights: Sequence[float], dtype: str) -> None:
        """Add Σ weightᵢ · partᵢ to `total`, in one pass.

        Operands begin at the total's first element; what they do not reach is as if they were zero there.
        A float total adds one operand after the other in the order given, each product and sum rounded. Raises
        `NotFinite` and `Overflow` (a term or a sum beyond the accumulator, or an integer beyond 2^53, which float64
        does not tell from its neighbours), after which the total is spoiled, as it is when the call is interrupted; and
        `WeightRange` and `TooManyTerms`, after which it is as before.
        """
        ...

    def merge(self, total: Total, other: Total) -> None:
        """Add `other` to `total`; for exact totals the result is as if all had been folded into one."""
        ...

    def finish(self, total: Total, out: Operand, dtype: str, base: Operand | None = None) -> None:
        """Write the mean, the total divided by its sum of weights, to `out`, rounded once to `dtype`, ties to even.

        With `base` (of the same dtype), base plus mean. Raises `Overflow` where `dtype` cannot hold a result, and
        `WeightRange` where the sum of weights is zero; `out` is then not to be used.
        """
        ...

    def mean(
        self,
        operands: Sequence[Operand],
        weights: Sequence[float],
        out: Operand,
        dtype: str,
        accumulate: str = "exact",
        *,
        result: str | None = None,
        base: Operand | None = None,
        scale: int | None = None,
    ) -> None:
        """Do `fold` and `finish` in one pass, with a total that never leaves the cache.

        `result` is the dtype of `out` and `base`: by default that of the operands, or float32 for quantized ones. A
        float sum takes weights divided by 2^`scale`: by default that of the largest. A smaller one lowers the magnitude
        from which on terms overflow.
        """
        ...

    def max_abs(self, operands: Sequence[Operand], dtype: str) -> list[float]:
        """Return the largest magnitude of each operand, infinite or NaN where one of its elements is; reads each once.

        A fold that fails spoils the total. Inspect an operand first if the total holds operands of others.
        """
        ...

    def inspect(self, operand: Buffer, dtype: str) -> Inspection:
        """Return the first element that is not finite and the largest finite magnitude, in one read if it is sound."""
        ...

    def encode(self, values: npt.NDArray[np.float32], out: Buffer, dtype: str) -> None:
        """Round float32 values to `dtype`: bfloat16 and float16 (nearest even, NaN stays NaN), or quantized int8.

        Quantized: scale = fl32(largest magnitude of the block / 127), code = rint(value / scale); a value comes back
        within (1/2 + 2^-16) · scale (0.3 % of the block's largest), and a block whose scale would not be a normal
        number becomes zeros. Values that are not finite raise `NotFinite` there.
        """
        ...

    def decode(self, operand: Buffer, out: npt.NDArray[np.float32], dtype: str) -> None:
        """Write the float32 values of an operand; exact for float16, bfloat16 and quantized operands."""
        ...

    def save(self, total: Total, file: BinaryIO) -> None:
        """Write a total's state, which `restore` reads on any device and in any version of this format."""
        ...

    def restore(self, file: BinaryIO) -> Total:
        """Return a saved total, or raise `BadState`."""
        ...
