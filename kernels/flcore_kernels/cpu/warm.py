"""Compiling kernels ahead of their first use: for container images, and where the first call must not wait."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from flcore_layout import DTYPES

from flcore_kernels import code_cache
from flcore_kernels.cpu import distances, kernels, mix, order, scan, step
from flcore_kernels.cpu.compiler import Kernel, cache_directory
from flcore_kernels.dtypes import STORAGE, lookup
from flcore_kernels.errors import KernelError
from flcore_kernels.threads import thread_count
from flcore_kernels.totals import ACCUMULATORS

COMMON_DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int8[256]")

_NOT_KEPT = "compiled kernels cannot be kept here: see the warning above"

Key = tuple[str, ...]
"""A kernel's verb and its dtypes and accumulator, such as `("mean", "bfloat16", "exact", "float32")`."""

_KERNELS: dict[str, Callable[..., Kernel]] = {
    "fold": kernels.fold_kernel,
    "mean": lambda dtype, accumulate, result: kernels.mean_kernel(dtype, accumulate, result, False),
    "mean-base": lambda dtype, accumulate, result: kernels.mean_kernel(dtype, accumulate, result, True),
    "finish": lambda accumulate, result: kernels.finish_kernel(accumulate, result, False),
    "finish-base": lambda accumulate, result: kernels.finish_kernel(accumulate, result, True),
    "exact-fallback": kernels.exact_fallback_kernel,
    "merge": kernels.merge_kernel,
    "max-abs": scan.max_abs_kernel,
    "decode": scan.decode_kernel,
    "encode": scan.encode_kernel,
    "quantize": lambda block: scan.quantize_kernel(int(block)),
    "median": order.median_kernel,
    "trimmed-mean": order.trimmed_mean_kernel,
    "mean-around-median": order.mean_around_median_kernel,
    "weighted-median": order.weighted_median_kernel,
    "weighted-trimmed-mean": order.weighted_trimmed_mean_kernel,
    "distances": distances.distances_kernel,
    "mix": mix.mix_kernel,
    "step": step.step_kernel,
}


def keys_of(dtypes: Sequence[str]) -> list[Key]:
    """Return the keys of the kernels that read or write these dtypes."""
    keys: list[Key] = []
    for dtype in dtypes:
        storage = lookup(dtype)
        result = "float32" if storage.block else dtype
        for accumulate in ACCUMULATORS:
            keys += [("mean", dtype, accumulate, result), ("fold", dtype, accumulate), ("finish", accumulate, result)]
        keys += [("mean-base", dtype, "exact", result), ("exact-fallback", result)]
        keys += [("max-abs", dtype), ("decode", dtype)]
        keys += [("quantize", str(storage.block))] if storage.block else []
        keys += [("encode", dtype)] if DTYPES[dtype].compresses_float32 and not storage.block else []
    return list(dict.fromkeys([*keys, ("merge",)]))


ORDER_VERBS = ("median", "weighted-median", "trimmed-mean", "weighted-trimmed-mean", "mean-around-median")


def rule_keys_of(dtypes: Sequence[str]) -> list[Key]:
    """Return the keys of the kernels of robust rules and server optimizers, for models of these dtypes.

    Quantized updates are decoded to float32 first.
    """
    keys: list[Key] = []
    for dtype in dict.fromkeys("float32" if lookup(dtype).block else dtype for dtype in dtypes):
        is_float = STORAGE[dtype].is_float
        mixed = "float32" if is_float and dtype != "float64" else "float64"
        keys += [(verb, each, "float64") for verb in ORDER_VERBS for each in dict.fromkeys((dtype, mixed))]
        keys += [("mix", dtype, mixed)]
        if is_float:
            keys += [("distances", dtype)]
            keys += [("step", formula, mean, dtype) for formula in step.FORMULAS for mean in ("float32", "float64")]
    return list(dict.fromkeys(keys))


def kernel_of(key: Key) -> Kernel:
    """Return the kernel that a key names."""
    return _KERNELS[key[0]](*key[1:])


def warm(
    dtypes: Sequence[str] | None = None, processes: int | None = None, *, rules: bool = False
) -> Iterator[tuple[int, int, Key, bool]]:
    """Compile the kernels for some dtypes, by default `COMMON_DTYPES`, ahead of their first use (`compile_ahead`).

    `rules`: also those of robust rules and server optimizers.
    """
    chosen = list(STORAGE) if dtypes is not None and "all" in dtypes else dtypes or COMMON_DTYPES
    return compile_ahead([*keys_of(chosen), *(rule_keys_of(chosen) if rules else [])], processes)


def compile_ahead(keys: Sequence[Key], processes: int | None = None) -> Iterator[tuple[int, int, Key, bool]]:
    """Compile kernels in several processes, and cache them on disk.

    Yields (kernels done, kernels in total, key, whether it was compiled) after each. Raises `KernelError` if compiled
    code cannot be cached.
    """
    if cache_directory() is None:
        raise KernelError(_NOT_KEPT)
    groups = _groups(keys)
    done = 0
    with ProcessPoolExecutor(thread_count(processes), mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(_compile, group): group for group in groups}
        for future in as_completed(waiting):
            for key, was_needed in zip(waiting[future], future.result(), strict=True):
                path = kernel_of(key).path()
                if was_needed and not (path and code_cache.read(path)):
                    raise KernelError(_NOT_KEPT)
                done += 1
                yield done, len(keys), key, was_needed


def _compile(group: list[Key]) -> list[bool]:
    return [kernel_of(key).warm(notice=False) for key in group]


def _groups(keys: Sequence[Key]) -> list[list[Key]]:
    """Return the keys in groups that one process compiles, the largest group first.

    Kernels of a group share device functions. A process compiles each function once. So a `fold` after the `mean` of
    its dtype and accumulator takes a third of its time.
    """
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in keys:
        match key:
            case ("mean" | "mean-base" | "fold", dtype, accumulate, *_):
                group = (dtype, accumulate)
            case ("finish" | "finish-base", accumulate, result):
                group = (result, accumulate)
            case ("exact-fallback", _):
                group = ("exact-fallback", "")
            case (
                "median" | "trimmed-mean" | "mean-around-median" | "weighted-median" | "weighted-trimmed-mean",
                dtype,
                _,
            ):
                group = (dtype, "order")
            case ("step", _, mean, dtype):
                group = (dtype, f"step-{mean}")
            case _:
                group = ("scan", key[-1])
        groups.setdefault(group, []).append(key)
    return sorted(groups.values(), key=len, reverse=True)
