"""`Backend`: the verbs that every device has, and the types of their arguments.

A *buffer* is a contiguous array of a dtype's storage (`storage_dtype`), or `Quantized`. An *operand* is a buffer, or a
list of buffers: the tensors of one client, which lie over the total one after the other, each at the next multiple of
256 elements. Operands are read in place. They may be read-only, mapped from a file, and at any address. The backend of
a CUDA device also takes arrays on that device, from any library with DLPack or `__cuda_array_interface__`.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from flcore_kernels.inspection import Inspection
from flcore_kernels.totals import Total

Array = npt.NDArray[Any]


class Quantized(NamedTuple):
    """An int8-quantized buffer: an element's value is fl32(scale · code).

    `codes` has one int8 per element. `scales` has one float32 per block of elements; the dtype, such as `int8[256]`,
    gives the elements of a block. The last block may be shorter.

    Example:
        >>> import numpy as np
        >>> from flcore_kernels import Quantized, backend
        >>> codes, scales = np.array([127, -64], np.int8), np.array([0.5], np.float32)
        >>> out = np.empty(2, np.float32)
        >>> backend("cpu").decode(Quantized(codes, scales), out, "int8[256]")
        >>> out.tolist()
        [63.5, -32.0]
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


Buffer = Array | Quantized
"""One tensor, or any contiguous elements of one dtype."""

Operand = Buffer | Sequence[Buffer]
"""What one client contributes: a buffer, or several that lie over the total one after the other."""


class Backend(Protocol):
    """The verbs of aggregation on one device.

    In all verbs, `dtype` is a key of `STORAGE`, and `accumulate` is one of `ACCUMULATORS`. Any thread may call any
    verb. Calls that change the same total must not overlap. All verbs raise `BufferMismatch` for a buffer of another
    size, dtype or place than expected, and `UnknownDType` for a dtype without kernels.
    """

    name: str

    def total(self, elements: int, accumulate: str) -> Total:
        """Return an empty total.

        Args:
            elements: Elements of the total, gaps between buffers included.
            accumulate: `exact`, `float64` or `float32`.
        """
        ...

    def fold(self, total: Total, operands: Sequence[Operand], weights: Sequence[float], dtype: str) -> None:
        """Add Σ weightᵢ · operandᵢ to `total`, in one pass over the operands.

        Args:
            total: A total of this backend. Beyond the operands' end, zeros are added to it.
            operands: Operands of equal sizes, which begin at the total's first element.
            weights: One weight per operand: 0, or finite and positive. For `exact`, 0 or within `EXACT_RANGE`.
            dtype: The dtype of all operands.

        A float total adds the operands in the order given, and rounds each product and each sum. An exact total does
        not depend on the order.

        Raises:
            NotFinite: An operand has a NaN or an infinity. The total is spoiled.
            Overflow: A term or a sum is beyond the accumulator's range, or an integer is beyond 2^53. The total is
                spoiled, as after a call that was interrupted.
            WeightRange: A weight is outside its range. The total is unchanged.
            TooManyTerms: An exact total would have more than `MAX_TERMS` terms. The total is unchanged.
            SpoiledTotal: An earlier error spoiled the total.
        """
        ...

    def merge(self, total: Total, other: Total) -> None:
        """Add `other` to `total`. For exact totals, the bits are as if all terms had been folded into one total.

        For totals of partial sums: of several processes or devices, or of one that was saved.

        Args:
            total: The total that changes.
            other: Another total with the same number of elements and the same accumulator.

        Raises:
            TooManyTerms: Both have more than `MAX_TERMS` terms together. `total` is unchanged.
            SpoiledTotal: An earlier error spoiled one of them.
        """
        ...

    def finish(self, total: Total, out: Operand, dtype: str, base: Operand | None = None) -> None:
        """Write the mean, which is the total divided by its sum of weights, to `out`. The total stays as it is.

        The mean is rounded once to `dtype`, ties to even. A float32 total without a base is an exception: its mean is
        rounded to float32 before it is rounded to a narrower float.

        Args:
            total: A total with a sum of weights above 0.
            out: Writable buffers, laid over the total as operands are.
            dtype: The dtype of `out` and `base`; not a quantized one.
            base: If given, base + mean is written instead.

        Raises:
            Overflow: A result is beyond the range of `dtype`. The content of `out` is undefined.
            WeightRange: The sum of weights is 0.
            SpoiledTotal: An earlier error spoiled the total.
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
        """Do `fold` and `finish` in one pass, with a total that stays in the cache. The bits are the same.

        Args:
            operands: Operands of the sizes of `out`.
            weights: As of `fold`, with a sum above 0.
            out: Writable buffers.
            dtype: The dtype of all operands.
            accumulate: `exact`, `float64` or `float32`.
            result: The dtype of `out` and `base`. Default: that of the operands, or float32 for quantized ones.
            base: If given, base + mean is written.
            scale: Float sums take weights divided by 2^scale. Default: the exponent of the largest weight. With a
                smaller one, terms overflow from a smaller magnitude on.

        Raises:
            NotFinite, Overflow, WeightRange, TooManyTerms: As `fold` and `finish`. The content of `out` is undefined.
        """
        ...

    def max_abs(self, operands: Sequence[Operand], dtype: str) -> list[float]:
        """Return the largest magnitude of each operand, in one pass: NaN or infinite if one of its elements is.

        A fold that fails spoils its total. So examine an operand first, if the total holds other clients' operands.
        """
        ...

    def inspect(self, operand: Buffer, dtype: str) -> Inspection:
        """Return the first element that is not finite, and the largest finite magnitude.

        Reads a buffer of finite elements once.
        """
        ...

    def encode(self, values: npt.NDArray[np.float32], out: Buffer, dtype: str) -> None:
        """Round float32 values to a narrower dtype.

        bfloat16 and float16: to nearest, ties to even; beyond the range, to infinity; a NaN stays a NaN.

        int8 with scales: scale = fl32(m / 127) with the largest magnitude m of the block, code = rint(value / scale). A
        decoded value differs by at most (1/2 + 2^-16) · scale, which is 0.4 % of m. A block with a scale below 2^-126
        becomes zeros.

        Args:
            values: The values.
            out: A writable buffer of `dtype` with as many elements.
            dtype: `bfloat16`, `float16`, or a quantized dtype such as `int8[256]`.

        Raises:
            NotFinite: A value that is to be quantized is a NaN or an infinity.
        """
        ...

    def decode(self, operand: Buffer, out: npt.NDArray[np.float32], dtype: str) -> None:
        """Write the values of a buffer as float32. float16, bfloat16 and quantized values are exact.

        Args:
            operand: A buffer of `dtype`.
            out: A writable array with as many elements.
            dtype: Any key of `STORAGE`; float64 and wide integers are rounded.
        """
        ...

    def save(self, total: Total, file: BinaryIO) -> None:
        """Write a total's state to a binary file, in a versioned format that `restore` of all backends reads.

        Raises:
            SpoiledTotal: An earlier error spoiled the total.
        """
        ...

    def restore(self, file: BinaryIO) -> Total:
        """Return the total that `save` wrote, on this backend's device.

        Raises:
            BadState: The bytes are not a saved total, are damaged, or end early.
        """
        ...
