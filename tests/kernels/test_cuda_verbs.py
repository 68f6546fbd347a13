"""A thin slice of the CUDA backend: every verb once on the emulated device, with the CPU's bits.

`make test-device` runs the kernels' whole suite there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flcore_kernels import Backend, Quantized, backend
from flcore_kernels.cuda.backend import CudaBackend

from tests.kernels.cases import again, draw, finished, folded, mean, state_of
from tests.kernels.shim.compiled import NEEDS_COMPILER
from tests.kernels.shim.device import ShimDevice

SIZE = 20_001
WEIGHTS = [1.0, 0.1, 3.0, 2.5, 0.7]
OPERANDS: list[Any] = [draw(np.random.default_rng(seed), "float32", SIZE).operand for seed in range(5)]


def total(device: Backend) -> Any:
    return folded(device, OPERANDS, WEIGHTS, "float32", "exact", SIZE)


def merged(device: Backend) -> bytes:
    both = total(device)
    device.merge(both, folded(device, OPERANDS[:2], [4.0, 0.3], "float32", "exact", SIZE))
    return state_of(device, both)


def encoded(device: Backend) -> Quantized:
    out = Quantized(np.empty(SIZE, np.int8), np.empty(-(-SIZE // 256), np.float32))
    device.encode(OPERANDS[0], out, "int8[256]")
    return out


def decoded(device: Backend) -> bytes:
    out = np.empty(SIZE, np.float32)
    device.decode(encoded(device), out, "int8[256]")
    return out.tobytes()


VERBS: dict[str, Callable[[Backend], Any]] = {
    "total": lambda device: state_of(device, device.total(SIZE, "exact")),
    "fold": lambda device: state_of(device, total(device)),
    "merge": merged,
    "finish": lambda device: finished(device, total(device), "float32").tobytes(),
    "mean": lambda device: mean(device, OPERANDS, WEIGHTS, "float32", "exact", "float32", SIZE).tobytes(),
    "max_abs": lambda device: device.max_abs(OPERANDS, "float32"),
    "inspect": lambda device: device.inspect(OPERANDS[0], "float32"),
    "encode": lambda device: [array.tobytes() for array in encoded(device)],
    "decode": decoded,
    "save": lambda device: state_of(device, total(device)),
    "restore": lambda device: finished(device, again(device, total(device)), "float32").tobytes(),
}


@NEEDS_COMPILER
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_bits_of_the_cpu(verb: str) -> None:
    emulated = CudaBackend(ShimDevice(), 2, 48 << 10)
    assert VERBS[verb](emulated) == VERBS[verb](backend("cpu"))


def test_every_verb_is_in_the_slice() -> None:
    assert set(VERBS) == {name for name, verb in vars(Backend).items() if callable(verb) and not name.startswith("_")}
