"""Squared distances between operands, and to a base: sums over any number of ranges, on the CPU.

A sum depends on the values alone: not on the order of the operands, on threads, or on how a model is divided into
ranges. Each range must begin at a multiple of 256 elements of what it is a part of.

Differences come first: the distance of two nearly identical operands is right, however far they are from zero. For
float32 and narrower floats, the sum of a block of 256 squares is in float32, with a relative error of typically 1e-7
and at most 1.1e-6; blocks with tiny or huge squares are summed again in float64. Blocks are added without rounding (see
`digit_sums`).

They have no CUDA twin yet, so they are a class of their own, and not a verb of `Backend`.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flcore_kernels.backend import Array
from flcore_kernels.digit_sums import DIGIT_BITS, LOWEST_PLACE, DigitSums, Integers
from flcore_kernels.dtypes import lookup
from flcore_kernels.errors import BufferMismatch, Overflow, TooManyTerms
from flcore_kernels.rows import addresses_of, sizes_of
from flcore_kernels.scratch import scratch
from flcore_kernels.threads import shared_pool
from flcore_kernels.totals import MAX_TERMS

Reals = npt.NDArray[np.float64]

BATCH_BYTES = 4 << 20
"""Bytes of all operands in a batch at least, the unit of work that threads take."""

BATCHES, SUMS_BYTES = 64, 64 << 20
"""Batches of a call at most, and bytes of their sums: each batch has sums of its own."""


class SquaredDistances:
    """The squared distances of `count` operands to a base, and to each other.

    Args:
        count: The number of operands.
        pairs: Whether distances between operands are wanted. Default: True. Else those to the base alone.
        threads: Threads at most. Default: `FLCORE_THREADS`, or else the cores that this process may use.

    Example:
        >>> import numpy as np
        >>> distances = SquaredDistances(2)
        >>> distances.add([np.array([1, 2], np.float32), np.array([4, 6], np.float32)], "float32")
        >>> distances.matrix().tolist()
        [[0.0, 25.0, 5.0], [25.0, 0.0, 52.0], [5.0, 52.0, 0.0]]
    """

    def __init__(self, count: int, *, pairs: bool = True, threads: int | None = None) -> None:
        from flcore_kernels.cpu.row_pairs import GROUP, PAIRS

        if not 0 < count <= MAX_TERMS:
            raise TooManyTerms(f"expected between 1 and {MAX_TERMS} operands, got {count}")
        self.count, self.pairs, self._threads = count, pairs, threads
        groups = -(-(count + 1) // GROUP)  # the base is the last row
        self._row_groups = groups
        wanted = [(i, j) for i in range(groups) for j in range(i, groups) if pairs or j == groups - 1]
        self._groups = np.array(wanted, np.int64)
        places = np.arange(PAIRS)
        self._left = self._groups[:, :1] * GROUP + places // GROUP
        self._right = self._groups[:, 1:] * GROUP + places % GROUP
        self._is_pair = (self._left < self._right) & (self._right <= count)
        if not pairs:
            self._is_pair &= self._right == count
        self._counting = (self._is_pair << places).sum(axis=1).astype(np.int64)
        self.sums = DigitSums(*self._left.shape)

    def add(self, operands: Sequence[Array], dtype: str, base: Array | None = None) -> None:
        """Add a range of all operands.

        Args:
            operands: One flat, contiguous array per operand, in the storage of `dtype`. Elements are finite.
            dtype: A float dtype.
            base: An array like an operand. Default: None, zeros.

        Raises:
            BufferMismatch: An array has another size, dtype or place than expected, or `dtype` is not a float.
            Overflow: An element is not finite, or a squared distance of float64 is not. The sums stay as they were.
        """
        from flcore_kernels.cpu.distances import MAX_BLOCKS, distances_kernel
        from flcore_kernels.cpu.row_pairs import BLOCK, GROUP

        if not lookup(dtype).is_float:
            raise BufferMismatch(f"expected operands of a float dtype, got {dtype}")
        addresses, rows, size = self._addresses(operands, base, dtype)
        kernel, blocks = distances_kernel(dtype), -(-size // BLOCK)
        least = max(1, BATCH_BYTES // (len(addresses) * BLOCK * lookup(dtype).dtype.itemsize))
        most = max(1, min(BATCHES, SUMS_BYTES // (self.sums.digits.nbytes + 2 * self.sums.places.nbytes)))
        batch = min(MAX_BLOCKS, max(least, -(-blocks // most)))

        def work(number: int) -> tuple[int, Reals, Integers]:
            places = np.full(self.sums.places.size, LOWEST_PLACE, np.int64)
            scales, digits = np.ldexp(np.ones(places.size), -DIGIT_BITS * places), np.zeros(self.sums.digits.size)
            span = number * batch, min(blocks, (number + 1) * batch)
            held = scratch(self._row_groups * GROUP * BLOCK * 8), self._row_groups
            pairs = self._groups, self._counting
            return kernel(addresses, rows, size, *span, *held, *pairs, scales, digits, places), digits, places

        results = shared_pool(self._threads).run(work, -(-blocks // batch))
        failed = [block for block, _, _ in results if block >= 0]
        if failed:
            element = min(failed) * BLOCK
            raise Overflow(
                f"elements {element} and on: a squared distance is not finite, as an element is not or is too large",
                element,
            )
        for _, digits, places in results:
            counted = np.where(self._is_pair[:, None], digits.reshape(self.sums.digits.shape), 0.0)
            self.sums.add(places.reshape(self.sums.places.shape), counted.astype(np.int64))

    def merge(self, other: "SquaredDistances") -> None:
        """Add the sums of other ranges of the same operands."""
        if (other.count, other.pairs) != (self.count, self.pairs):
            raise BufferMismatch(
                f"expected sums of the same pairs of {self.count} operands, got others of {other.count}"
            )
        self.sums.add(other.sums.places, other.sums.digits)

    def matrix(self) -> Reals:
        """Return the squared distances as a symmetric matrix; the last row and column are those of the base.

        NaN where distances were not asked for.
        """
        matrix = np.full((self.count + 1, self.count + 1), 0.0 if self.pairs else math.nan)
        np.fill_diagonal(matrix, 0.0)
        left, right = self._left[self._is_pair], self._right[self._is_pair]
        matrix[left, right] = matrix[right, left] = self.sums.values(self._is_pair)
        return matrix

    def _addresses(
        self, operands: Sequence[Array], base: Array | None, dtype: str
    ) -> tuple[npt.NDArray[np.uint64], Integers, int]:
        """Return the addresses of operands and base, their rows, and their number of elements."""
        if len(operands) != self.count:
            raise BufferMismatch(f"expected {self.count} operands, got {len(operands)}")
        sizes, storage = sizes_of(operands[0]), lookup(dtype)
        found = [addresses_of(each, storage, sizes, f"operand {k}")[0][0] for k, each in enumerate(operands)]
        rows = list(range(self.count))
        if base is not None:
            found, rows = [*found, addresses_of(base, storage, sizes, "base")[0][0]], [*rows, self.count]
        return np.array(found, np.uint64), np.array(rows, np.int64), sizes[0]
