"""The CUDA sources with each rule of exact sums broken, which the law must reject; see `test_mutations`."""

from collections.abc import Iterator

import pytest
from flcore_kernels.cuda import kernels as cuda_kernels
from flcore_kernels.cuda.backend import CudaBackend

from tests.kernels import law
from tests.kernels.shim import compiled
from tests.kernels.shim.device import ShimDevice

pytestmark = compiled.EMULATED

MUTATIONS = {
    "a carry": (
        "digits_stay_where_they_are",
        "            digits.write(block_address(total, block), lane);\n            __syncwarp(sixteen());  // all",
        """            for (int i = 0; i < EACH_LANE; i++) {
                i64 high, low;
                carry(digits.upper[i], digits.lower[i], high, low);
                digits.upper[i] = u64(high), digits.lower[i] = u64(low);
            }
            digits.write(block_address(total, block), lane);
            __syncwarp(sixteen());  // all""",
    ),
    "a fused multiply-add": (
        "terms_are_rounded_products",
        "double v = t + (bins.both - u);",
        "double v = fma(batch.weight[j], double(D::value(batch.stored[j][i], batch.factor[j])), bins.both - u);",
    ),
    "levels by the floor of log2": (
        "levels_change_at_half_a_bin",
        "i64 ceiling = exponent + ((bits & 0xFFFFFFFFFFFFFLL) != 0 ? 1 : 0);",
        "i64 ceiling = exponent;",
    ),
    "a guess that is not looked at": (
        "levels_change_at_half_a_bin",
        "if (is_right || (!is_open && !is_low)) return level;",
        "return level;",
    ),
    "a bfloat16 rounded to float32 before": (
        "results_are_rounded_once",
        "    constexpr int CUT = 53 - PRECISION;\n    i64 bits = bits_of(value);",
        "    constexpr int CUT = 53 - PRECISION;\n    value = double(float(value));\n    i64 bits = bits_of(value);",
    ),
    "a float32 rounded to float64 before": (
        "results_are_rounded_once",
        "R::round((is_odd ? quotient : neighbour(quotient, whole)) * unit)",
        "R::round(quotient * unit)",
    ),
    "a sum of weights without its rest": (
        "the_sum_of_weights_is_exact",
        "outside = first * by.rest;",
        "outside = 0.0 * by.rest;",
    ),
}


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Compile what the sources are then, and what they were when that is over."""
    caches = (compiled.directory, compiled.compiled_header, compiled.library)
    for cached in caches:
        cached.cache_clear()
    yield monkeypatch
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("check", law.CHECKS)
def test_the_kernels_keep_the_law(check: str) -> None:
    law.CHECKS[check](CudaBackend(ShimDevice(), 1))


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_law_rejects_a_kernel_that_breaks_a_rule(name: str, anew: pytest.MonkeyPatch) -> None:
    check, before, after = MUTATIONS[name]
    text = cuda_kernels.source()
    assert text.count(before) == 1
    anew.setattr(compiled, "source", lambda: text.replace(before, after))
    with pytest.raises(AssertionError):
        law.CHECKS[check](CudaBackend(ShimDevice(), 1))
