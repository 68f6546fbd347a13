"""The fold in memory: K parts into one total, next to reading the same bytes once."""

from statistics import median

import numpy as np
import numpy.typing as npt
from flcore_kernels import backend, storage_dtype

from flcore_bench.machine import read_bandwidth, seconds
from flcore_bench.table import Row

PARTS = 10
CHUNK = 1 << 19
SIZES = {"small": 1 << 22, "full": 1 << 26}


def fold_benchmark(scale: str, repeats: int = 5) -> list[Row]:
    """Fold 10 clients of one dtype after another, on one thread, chunk by chunk as the aggregator does."""
    size = SIZES[scale]
    rng = np.random.default_rng(0)
    values = [rng.random(size, np.float32) for _ in range(PARTS)]
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        parts = [_stored(part, dtype) for part in values]
        limit = read_bandwidth(np.concatenate([part.view(np.float32) for part in parts[:4]]), threads=1)
        fold_all(parts, dtype)
        taken = seconds(lambda parts=parts, dtype=dtype: fold_all(parts, dtype), repeats)  # type: ignore[misc]
        speed = sum(part.nbytes for part in parts) / median(taken)
        rows.append(
            Row(f"fold {dtype}", median(taken), (min(taken), max(taken)), speed, speed / limit, f"{PARTS} clients")
        )
        rows.append(_limit_row(dtype, parts, limit))
    return rows


def fold_all(parts: list[npt.NDArray[np.generic]], dtype: str) -> None:
    """Fold all parts, into a total of one chunk."""
    device = backend("cpu")
    total = np.empty(CHUNK)
    weights = [1.0] * len(parts)
    for start in range(0, parts[0].size, CHUNK):
        chunk = total[: min(CHUNK, parts[0].size - start)]
        chunk.fill(0.0)
        device.fold(chunk, [part[start : start + CHUNK] for part in parts], weights, dtype)


def _stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.generic]:
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype).view(storage_dtype(dtype))


def _limit_row(dtype: str, parts: list[npt.NDArray[np.generic]], limit: float) -> Row:
    bytes_ = sum(part.nbytes for part in parts)
    return Row(f"read {dtype}", bytes_ / limit, (bytes_ / limit, bytes_ / limit), limit, None, "the limit, one thread")
