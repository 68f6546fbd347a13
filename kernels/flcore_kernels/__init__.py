"""The arithmetic of aggregation: flat typed buffers in, flat typed buffers out.

A `Backend` has the same verbs on every device. `fold` adds weighted operands to a running `Total`, `finish` writes its
mean in a dtype, and `mean` does both in one pass. `merge`, `save` and `restore` combine and store totals of partial
sums. `max_abs` and `inspect` look for values that must not be folded. `encode` and `decode` convert from and to
float32. `median`, `trimmed_mean`, `mean_around_median`, `mix`, `SquaredDistances` and `step` (a server optimizer's) are
no verbs, as they run on the CPU only. The package knows nothing of clients or rounds. A buffer has the *storage* of one
dtype (`storage_dtype`): 16-bit floats are the uint16 of their bits.

    >>> import numpy as np
    >>> from flcore_kernels import backend
    >>> cpu = backend("cpu")
    >>> operands = [np.array([1, 2, 3], np.float32), np.array([5, 6, 7], np.float32)]
    >>> out = np.empty(3, np.float32)
    >>> cpu.mean(operands, [3.0, 1.0], out, "float32")
    >>> out.tolist()
    [2.0, 3.0, 4.0]

An exact total takes operands one after the other. Its bits do not depend on the order, the threads or the machine:

    >>> total = cpu.total(3, "exact")
    >>> for operand, weight in zip(operands, [3.0, 1.0]):
    ...     cpu.fold(total, [operand], [weight], "float32")
    >>> cpu.finish(total, out, "float32")
    >>> out.tolist()
    [2.0, 3.0, 4.0]
"""

from flcore_kernels.backend import Backend, Buffer, Operand, Quantized
from flcore_kernels.code_cache import CachedCode
from flcore_kernels.device_arrays import DeviceArray, described, device_of
from flcore_kernels.devices import backend, cached_kernels, fall_back, warm
from flcore_kernels.distances import SquaredDistances
from flcore_kernels.dtypes import EXACT_INTEGER_LIMIT, STORAGE, storage_dtype
from flcore_kernels.errors import (
    BackendUnavailable,
    BadState,
    BufferMismatch,
    DeviceFailed,
    KernelError,
    NotFinite,
    OptimizerRange,
    OutOfDeviceMemory,
    Overflow,
    SpoiledTotal,
    TooManyTerms,
    UnknownDType,
    WeightRange,
)
from flcore_kernels.inspection import Inspection
from flcore_kernels.mix import mix
from flcore_kernels.optimizers import Adagrad, Adam, Momentum, Optimizer, ServerLr, Yogi
from flcore_kernels.order import mean_around_median, median, trimmed_mean
from flcore_kernels.step import state_dtype, step
from flcore_kernels.totals import ACCUMULATORS, MAX_TERMS, Total, bytes_per_element
from flcore_kernels.weights import EXACT_RANGE

__all__ = [
    "ACCUMULATORS",
    "EXACT_INTEGER_LIMIT",
    "EXACT_RANGE",
    "MAX_TERMS",
    "STORAGE",
    "Adagrad",
    "Adam",
    "Backend",
    "BackendUnavailable",
    "BadState",
    "Buffer",
    "BufferMismatch",
    "CachedCode",
    "DeviceArray",
    "DeviceFailed",
    "Inspection",
    "KernelError",
    "Momentum",
    "NotFinite",
    "Operand",
    "Optimizer",
    "OptimizerRange",
    "OutOfDeviceMemory",
    "Overflow",
    "Quantized",
    "ServerLr",
    "SpoiledTotal",
    "SquaredDistances",
    "TooManyTerms",
    "Total",
    "UnknownDType",
    "WeightRange",
    "Yogi",
    "backend",
    "bytes_per_element",
    "cached_kernels",
    "described",
    "device_of",
    "fall_back",
    "mean_around_median",
    "median",
    "mix",
    "state_dtype",
    "step",
    "storage_dtype",
    "trimmed_mean",
    "warm",
]
