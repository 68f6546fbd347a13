"""A CUDA backend whose callers have all arrays on the device: the suite's NumPy arrays are put there first."""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
from flcore_kernels import Backend, Inspection, Quantized, Total, backend

Array = Any
Put = Callable[[Array], Any]


class Resident:
    """The verbs of a backend; `put` copies an array to the device, `told` returns what is there."""

    name = "cuda"

    def __init__(self, inner: Backend, put: Put, told: Put) -> None:
        self._inner, self._put, self._told = inner, put, told

    @classmethod
    def on_cuda(cls) -> "Resident":
        """Return the real backend, with CuPy's arrays."""
        import cupy

        return cls(backend("cuda"), cupy.asarray, cupy.asnumpy)

    def total(self, elements: int, accumulate: str) -> Total:
        """See `Backend`."""
        return self._inner.total(elements, accumulate)

    def fold(self, total: Total, operands: Sequence[Any], weights: Sequence[float], dtype: str) -> None:
        """See `Backend`."""
        self._inner.fold(total, [self._there(operand) for operand in operands], weights, dtype)

    def merge(self, total: Total, other: Total) -> None:
        """See `Backend`."""
        self._inner.merge(total, other)

    def finish(self, total: Total, out: Any, dtype: str, base: Any = None) -> None:
        """See `Backend`."""
        target = self._there(out)
        self._inner.finish(total, target, dtype, None if base is None else self._there(base))
        self._back(target, out)

    def mean(
        self,
        operands: Sequence[Any],
        weights: Sequence[float],
        out: Any,
        dtype: str,
        accumulate: str = "exact",
        *,
        result: str | None = None,
        base: Any = None,
        scale: int | None = None,
    ) -> None:
        """See `Backend`."""
        target, based = self._there(out), None if base is None else self._there(base)
        there = [self._there(operand) for operand in operands]
        self._inner.mean(there, weights, target, dtype, accumulate, result=result, base=based, scale=scale)
        self._back(target, out)

    def max_abs(self, operands: Sequence[Any], dtype: str) -> list[float]:
        """See `Backend`."""
        return self._inner.max_abs([self._there(operand) for operand in operands], dtype)

    def inspect(self, operand: Any, dtype: str) -> Inspection:
        """See `Backend`."""
        return self._inner.inspect(self._there(operand), dtype)

    def encode(self, values: Any, out: Any, dtype: str) -> None:
        """See `Backend`."""
        target = self._there(out)
        self._inner.encode(self._there(values), target, dtype)
        self._back(target, out)

    def decode(self, operand: Any, out: Any, dtype: str) -> None:
        """See `Backend`."""
        target = self._there(out)
        self._inner.decode(self._there(operand), target, dtype)
        self._back(target, out)

    def save(self, total: Total, file: BinaryIO) -> None:
        """See `Backend`."""
        self._inner.save(total, file)

    def restore(self, file: BinaryIO) -> Total:
        """See `Backend`."""
        return self._inner.restore(file)

    def _there(self, operand: Any) -> Any:
        """Return an operand that is on the device; one that the kernels must refuse as it is."""
        if isinstance(operand, Quantized):
            return Quantized(self._there(operand.codes), self._there(operand.scales))
        if isinstance(operand, list):
            return [self._there(buffer) for buffer in operand]
        if isinstance(operand, np.ndarray) and operand.flags.c_contiguous and operand.flags.writeable:
            return self._put(operand)
        return operand

    def _back(self, there: Any, out: Any) -> None:
        if isinstance(out, Quantized):
            self._back(there.codes, out.codes)
            self._back(there.scales, out.scales)
        elif isinstance(out, list):
            for each, array in zip(there, out, strict=True):
                self._back(each, array)
        elif there is not out:
            out[...] = self._told(there)
