"""The fold in memory; `--benchmark-enable` measures it, otherwise it runs once as a test."""

from typing import Any

import numpy as np
import pytest
from flcore_bench import read_bandwidth
from flcore_bench.kernels import PARTS, fold_all


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_fold(benchmark: Any, dtype: str) -> None:
    storage = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    parts = [np.ones(1 << 20, storage) for _ in range(PARTS)]
    benchmark(fold_all, parts, dtype)
    limit = read_bandwidth(np.concatenate(parts).view(np.float32), threads=1, repeats=3)
    benchmark.extra_info["limit_gb_per_s"] = limit / 1e9
    if benchmark.stats is not None:
        speed = sum(part.nbytes for part in parts) / benchmark.stats["median"]
        benchmark.extra_info["gb_per_s"] = speed / 1e9
        benchmark.extra_info["of_limit"] = speed / limit
