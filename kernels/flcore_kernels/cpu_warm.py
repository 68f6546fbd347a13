"""Compiling kernels ahead of their first use: for images, and for machines where the first call must not wait."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from flcore_kernels import cpu_kernels, cpu_observe
from flcore_kernels.cpu_cache import Kernel, cache_directory
from flcore_kernels.dtypes import STORAGE, lookup
from flcore_kernels.errors import KernelError
from flcore_kernels.threads import thread_count
from flcore_kernels.totals import ACCUMULATORS

USUAL_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int8[256]")

Key = tuple[str, ...]

_KERNELS: dict[str, Callable[..., Kernel]] = {
    "fold": cpu_kernels.fold_kernel,
    "mean": lambda dtype, accumulate, result: cpu_kernels.mean_kernel(dtype, accumulate, result, False),
    "mean-base": lambda dtype, accumulate, result: cpu_kernels.mean_kernel(dtype, accumulate, result, True),
    "finish": lambda accumulate, result: cpu_kernels.finish_kernel(accumulate, result, False),
    "settle": cpu_kernels.settle_kernel,
    "merge": cpu_kernels.merge_kernel,
    "largest": cpu_observe.largest_kernel,
    "inspect": cpu_observe.inspect_kernel,
    "decode": cpu_observe.decode_kernel,
    "encode": cpu_observe.encode_kernel,
    "quantize": lambda block: cpu_observe.quantize_kernel(int(block)),
}


def keys_of(dtypes: Sequence[str]) -> list[Key]:
    """Return the kernels that work on some dtypes, by what they do and for what, those of everyday use first."""
    keys: list[Key] = []
    for dtype in dtypes:
        row = lookup(dtype)
        result = "float32" if row.block else dtype
        for accumulate in ACCUMULATORS:
            keys += [("mean", dtype, accumulate, result), ("fold", dtype, accumulate), ("finish", accumulate, result)]
        keys += [("mean-base", dtype, "exact", result), ("settle", result)]
        keys += [("largest", dtype), ("inspect", dtype), ("decode", dtype)]
        keys += [("quantize", str(row.block))] if row.block else []
        keys += [("encode", dtype)] if dtype in ("bfloat16", "float16") else []
    return list(dict.fromkeys([*keys, ("merge",)]))


def compile_key(key: Key) -> bool:
    """Compile one kernel, unless it is on disk already; returns whether that was needed."""
    return _KERNELS[key[0]](*key[1:]).warm(notice=False)


def warm(dtypes: Sequence[str] | None = None, processes: int | None = None) -> Iterator[tuple[int, int, Key, bool]]:
    """Compile the kernels for some dtypes (all usual ones by default) and keep them on disk.

    Yields (how many are done, how many there are, which one, whether it had to be compiled) after each. Raises
    `KernelError` where compiled code cannot be kept.
    """
    if cache_directory() is None:
        raise KernelError("compiled kernels cannot be kept here: see the warning above for the directory")
    keys = keys_of(list(STORAGE) if dtypes is not None and "all" in dtypes else dtypes or USUAL_DTYPES)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(thread_count(processes), mp_context=context) as pool:
        waiting = {pool.submit(compile_key, key): key for key in keys}
        for done, future in enumerate(as_completed(waiting), 1):
            yield done, len(keys), waiting[future], future.result()
