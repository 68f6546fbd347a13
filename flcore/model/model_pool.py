"""Models in memory that others have had: a large model's fresh pages take longer than all else that is done to it."""

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from flcore_kernels import storage_dtype

from flcore.model.model import Model
from flcore.model.spec import ModelSpec

Block = npt.NDArray[np.uint8]


class ModelPool:
    """Makes models of whatever values, in the memory of its earlier ones that nobody refers to any more.

    A view of a model's arrays counts as well. No more memory is held than there were models at once.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Block]] = {}

    def __call__(self, spec: ModelSpec) -> Model:
        """Return a model to fill."""
        return Model(spec, [self._array(each.elements, storage_dtype(each.dtype)) for each in spec.segments])

    def _array(self, elements: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        nbytes = elements * dtype.itemsize
        free = self._free.setdefault(nbytes, [])
        block = free.pop() if free else np.empty(nbytes, np.uint8)
        lease = _Lease(block)
        weakref.finalize(lease, free.append, block).atexit = False
        return np.asarray(lease).view(dtype)


class _Lease:
    """What every view of a block refers to in the end, so that it goes when the last of them goes."""

    def __init__(self, block: Block) -> None:
        self.__array_interface__ = block.__array_interface__
