"""The hot loops hold packed arithmetic in wide registers: their assembly says so."""

import platform
import re
from typing import Any

import numpy as np
import pytest
from flcore_kernels.cpu import kernels as cpu_kernels
from flcore_kernels.cpu import memory
from flcore_kernels.cpu.compiler import Kernel
from flcore_kernels.cpu.device_function import OPTIONS, device_function
from flcore_kernels.cpu.float import float_sum
from numba import njit

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="looks for the names of x86-64 registers"
)
FLOAT = ["vmulps", "vaddps"]
EXACT = ["vmulpd", "vaddpd", "vpaddq"]


def assembly(kernel: Kernel) -> str:
    """Compile a kernel, past the cache, and return its assembly."""
    dispatcher: Any = njit(**OPTIONS)(kernel._build())  # type: ignore[call-overload]
    dispatcher.compile(kernel._signature)
    return "".join(dispatcher.inspect_asm().values())


def wide(text: str, instruction: str) -> int:
    """Count an instruction where it works on 256 or 512 bits."""
    return len(re.findall(rf"^\s+{instruction}\s.*%[yz]mm", text, re.MULTILINE))


def require_packed(text: str, instructions: list[str]) -> None:
    """Four operands are added at once: four products a vector, and more than that of a loop unrolled."""
    for instruction in instructions:
        assert wide(text, instruction) >= 4, f"{instruction} is not packed"


@pytest.mark.parametrize(
    ("dtype", "accumulate"),
    [
        ("float32", "float32"),
        ("float32", "exact"),
        ("bfloat16", "exact"),
        ("float16", "float32"),
        ("int8[256]", "exact"),
    ],
)
def test_folds_are_packed_and_never_contracted(dtype: str, accumulate: str) -> None:
    text = assembly(cpu_kernels.fold_kernel(dtype, accumulate))
    require_packed(text, EXACT if accumulate == "exact" else FLOAT)
    assert not re.search(r"vfn?m(add|sub)", text), "a product and a sum were contracted"


def test_a_loop_made_scalar_on_purpose_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    peek = memory.peek_f32

    @device_function
    def running(address: Any, index: Any) -> Any:
        """An element of the total and the one before it, which the loop has just written."""
        return np.float32(peek(address, index) + peek(address, index - 1))

    monkeypatch.setattr(memory, "peek_f32", running)
    monkeypatch.setattr(cpu_kernels, "float_sum", float_sum.__wrapped__)
    kernel = cpu_kernels.fold_kernel.__wrapped__("float32", "float32")
    with pytest.raises(AssertionError, match="is not packed"):
        require_packed(assembly(kernel), FLOAT)
