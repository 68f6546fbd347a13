"""A whole round over loopback: 64 MB from each of 4 clients, with the server's peak memory."""

from typing import Any

import pytest
from flcore_bench import RoundFigures, round_benchmark


@pytest.mark.long
@pytest.mark.timeout(300)
def test_round(benchmark: Any) -> None:
    figures: RoundFigures = benchmark.pedantic(round_benchmark, args=("small",), rounds=1)
    assert figures.bytes_per_round == pytest.approx(2 * 4 * 64e6, rel=0.01)
    # Three models, four staged updates, and what a Python process with gRPC and Numba needs anyway.
    assert figures.server_peak_bytes < 7 * 64e6 + 400e6
    benchmark.extra_info["seconds_per_round"] = figures.seconds
    benchmark.extra_info["mb_per_s"] = figures.bytes_per_s / 1e6
    benchmark.extra_info["server_peak_mb"] = figures.server_peak_bytes / 1e6
