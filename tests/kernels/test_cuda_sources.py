"""The CUDA sources, without a device: compiled for three architectures, and what the compiler made of them."""

import re
from functools import cache

import pytest
from flcore_kernels import ACCUMULATORS
from flcore_kernels.cuda.kernels import (
    FILL_KERNEL,
    THREADS,
    decode_kernel,
    encode_kernel,
    finish_kernel,
    fold_kernel,
    max_abs_kernel,
    mean_kernel,
    merge_kernel,
    quantize_kernel,
    source,
)

from tests.kernels.cubin import Resources, compiled, nvrtc, resources

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(nvrtc() is None, reason="NVRTC's wheel is not installed (nvidia-cuda-nvrtc)"),
]

REGISTERS = 65_536
"""Of a multiprocessor, for all its threads."""

STACK_BYTES = 16
"""What the compiler may put aside of a seldom walked way, to fit another block; anything in a loop would take more."""

USUAL = ("float32", "bfloat16", "float64", "int8[256]", "int64")
FOLDS = [fold_kernel(dtype, accumulate) for dtype in USUAL for accumulate in ("exact", "float32")]
KERNELS = [
    *FOLDS,
    *(mean_kernel(dtype, accumulate, dtype, False) for dtype in USUAL[:2] for accumulate in ACCUMULATORS),
    mean_kernel("int8[256]", "exact", "float32", True),
    *(finish_kernel(accumulate, "bfloat16", True) for accumulate in ("exact", "float64")),
    finish_kernel("exact", "float64", True),
    *(finish_kernel("exact", dtype, False) for dtype in ("float64", "float16", "int64", "bool")),
    *(merge_kernel(accumulate) for accumulate in ("exact", "float64", "float32")),
    *(kernel(dtype) for kernel in (max_abs_kernel, decode_kernel) for dtype in ("float16", "int8[32]")),
    *(encode_kernel(dtype) for dtype in ("float16", "bfloat16")),
    *(quantize_kernel(block) for block in (32, 256)),
    FILL_KERNEL,
]


@cache
def needs(architecture: str) -> dict[str, Resources]:
    return resources(compiled(KERNELS, architecture))


def test_every_kernel_of_the_sources_is_among_those_compiled() -> None:
    defined = set(re.findall(r"__global__ void __launch_bounds__\([^)]*\)\n(\w+)\(", source()))
    assert defined == {kernel.partition("<")[0] for kernel in KERNELS}
    assert len(re.findall("__global__", source())) == len(defined)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_all_kernels_compile_without_spills_and_two_blocks_fit_a_multiprocessor(architecture: str) -> None:
    found = needs(architecture)
    kernels = {name: each for name, each in found.items() if not name.startswith("_Z7divided")}
    assert len(kernels) == len(KERNELS)
    for name, each in kernels.items():
        assert each.stack_bytes <= STACK_BYTES, f"{name} has spilled registers, or an array that is not in registers"
        assert each.registers * THREADS * 2 <= REGISTERS, f"{name} takes {each.registers} registers"
    assert all(each.stack_bytes == 0 for name, each in kernels.items() if re.match(r"_Z\d+fold", name)), "folds spill"
    folds = [each for name, each in kernels.items() if re.match(r"_Z\d+fold_float", name)]
    assert folds and all(each.registers <= 64 for each in folds), "four blocks of a float fold fit"


def test_a_kernel_that_spills_on_purpose_does_not_pass() -> None:
    greedy = (
        source()
        + """
        __global__ void __launch_bounds__(1024, 2) greedy(double *values) {
            double held[64];
            for (int i = 0; i < 64; i++) held[i] = values[threadIdx.x + 1024 * i];
            for (int k = 0; k < 8; k++)
                for (int i = 0; i < 64; i++) held[i] = held[i] * held[(i * 7 + 3) % 64] + held[63 - i];
            for (int i = 0; i < 64; i++) values[threadIdx.x + 1024 * i] = held[i];
        }"""
    )
    found = resources(compiled(["greedy"], "sm_90", text=greedy))["_Z6greedyPd"]
    assert found.stack_bytes > STACK_BYTES and found.registers <= 32


def entries(kernels: list[str]) -> dict[str, str]:
    """Return the PTX of each kernel, by its mangled name."""
    text = compiled(kernels, "compute_80", "PTX").decode()
    return dict(re.findall(r"\.entry (\w+)\((.*?)\n}", text, re.DOTALL))


def test_folds_read_vectors_and_contract_nothing() -> None:
    found = {name: body for name, body in entries(FOLDS).items() if "fold" in name}
    assert len(found) == len(FOLDS)
    for name, body in found.items():
        # Sixteen bytes a lane where a lane has as many of an operand; of narrow exact sums it has four.
        vectors = re.findall(r"ld\.global\.cs\.(v[24]\.[ub]32|[ub]32)", body)
        assert vectors, f"{name} reads no vectors"
        assert not re.search(r"\bfma\.|\.ftz", body), f"{name} contracts products and sums, or flushes denormals"
        assert ".local" not in body, f"{name} has memory of its own"
    for name, body in found.items():
        if re.search(r"float(32|64)|bfloat16", name):
            assert "ld.global.cs.v" in body, name


def test_a_contraction_on_purpose_does_not_pass() -> None:
    product = "held[i] += R(batch.weight[j]) * R("
    contracted = source().replace(product, f"held[i] = fmaf(R(batch.weight[j]), 1.0f, held[i]), {product}")
    assert contracted != source()
    text = compiled([fold_kernel("float32", "float32")], "compute_80", "PTX", contracted).decode()
    assert re.search(r"\bfma\.", text)
