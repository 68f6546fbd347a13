"""Means by the kernels; `--benchmark-enable` measures them, otherwise each runs once as a test."""

from typing import Any

import pytest
from flcore_bench import interleaved, limit_cases, measured_limit
from flcore_bench.workload import CLIENTS, buffers, encode_models, make_clients, make_weights, prefaulted
from flcore_kernels import backend


@pytest.mark.parametrize("accumulate", ["float32", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8[256]"])
def test_mean(benchmark: Any, dtype: str, accumulate: str) -> None:
    elements = 1 << 18
    parts, out = encode_models(make_clients(CLIENTS, elements), dtype), prefaulted(elements)
    benchmark(backend("cpu").mean, parts, make_weights(CLIENTS), out, dtype, accumulate, result="float32")
    assert 0 < abs(out).max() < 0.1
    if benchmark.stats is not None:
        taken = interleaved(limit_cases(buffers(parts), out, threads=2), rounds=7)
        limit = measured_limit(taken).median_s
        benchmark.extra_info["of_limit"] = limit / benchmark.stats["median"]
        size = sum(array.nbytes for array in buffers(parts))
        benchmark.extra_info["gb_per_s"] = size / benchmark.stats["median"] / 1e9
