"""The CUDA sources compiled for the processor, a kernel at a time, and kept from run to run."""

import ctypes
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_kernels import ACCUMULATORS, STORAGE
from flcore_kernels.cuda.kernels import (
    THREADS,
    decode_kernel,
    finish_kernel,
    fold_kernel,
    max_abs_kernel,
    mean_kernel,
    source,
)

COMPILER = shutil.which("g++")
NEEDS_COMPILER = pytest.mark.skipif(COMPILER is None, reason="the device is emulated by code that g++ compiles")
EMULATED = [pytest.mark.device, NEEDS_COMPILER]
"""Marks of tests of the emulated device, which `make test-device` runs."""

FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-U_FORTIFY_SOURCE", "-w", f"-DTHREADS={THREADS}")
RUNTIME = Path(__file__).parent / "cuda_on_host.h"
ROOT = Path(__file__).parents[3]

ENTRY = """
extern "C" void entry_{number}(unsigned first, unsigned count, unsigned width, void **arguments, const size_t *sizes,
                               size_t given, const shim::Range *ranges, size_t range_count) {{
    shim::ranges = ranges, shim::range_count = range_count;
    auto start = [&]<typename... P>(void (*kernel)(P...)) {{
        if (given != sizeof...(P)) shim::fail("the kernel takes another number of arguments");
        shim::launch(kernel, first, count, width, arguments, sizes, std::index_sequence_for<P...>{{}});
    }};
    start(&{kernel});
}}
"""

FAMILIES = (
    *(
        [
            *(fold_kernel(dtype, accumulate) for accumulate in ACCUMULATORS),
            *(mean_kernel(dtype, accumulate, "float32" if row.block else dtype, False) for accumulate in ACCUMULATORS),
            *(max_abs_kernel(dtype), decode_kernel(dtype)),
        ]
        for dtype, row in STORAGE.items()
    ),
    *(
        [finish_kernel(accumulate, dtype, has_base) for accumulate in ACCUMULATORS for has_base in (False, True)]
        for dtype, row in STORAGE.items()
        if not row.block
    ),
)
"""Kernels that are compiled together, for most of the time goes by before the first of them."""


@cache
def directory() -> Path:
    """Return where compiled code is kept: beside pytest's cache, in a directory named by all that it depends on."""
    version = subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout
    text = "\n".join([version, *FLAGS, RUNTIME.read_text(), source(), ENTRY, repr(FAMILIES)])
    place = ROOT / ".pytest_cache/shim" / hashlib.sha256(text.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    return place


@cache
def compiled_header() -> Path:
    """Return the sources as a header that is compiled already."""
    header = directory() / "kernels.h"
    compiled = directory() / "kernels.h.gch"
    with _alone(compiled):
        if not compiled.exists():
            header.write_text(RUNTIME.read_text() + source())
            _compile(["-x", "c++-header", str(header)], compiled)
    return header


@cache
def library(kernel: str, more: str = "") -> Any:
    """Return a kernel's entry; `more` is source that it is defined in, after the kernels' own."""
    family = next((family for family in FAMILIES if kernel in family), [kernel])
    key = hashlib.sha256("\n".join([*family, more]).encode()).hexdigest()[:24]
    built = directory() / f"{key}.so"
    with _alone(built):
        if not built.exists():
            text = built.with_suffix(".cpp")
            entries = "".join(ENTRY.format(number=number, kernel=each) for number, each in enumerate(family))
            text.write_text(f'#include "{compiled_header().name}"\n{more}\n{entries}')
            _compile(["-shared", str(text)], built)
            text.unlink()
    return getattr(ctypes.CDLL(str(built)), f"entry_{family.index(kernel)}")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold off other processes, so that each file is compiled once; one that ends lets the next one in."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(arguments: list[str], target: Path) -> None:
    temporary = target.with_suffix(".unfinished")
    command = [str(COMPILER), *FLAGS, *arguments, "-o", str(temporary)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=target.parent)
    # Not an AssertionError: a mutation that does not compile must not pass for one that the law rejects.
    if done.returncode != 0:
        raise RuntimeError(done.stderr[:4000])
    temporary.rename(target)


def launch(
    entry: Any,
    blocks: int,
    threads: int,
    arguments: Sequence[Any],
    ranges: Sequence[tuple[int, int]],
    first_block: int = 0,
) -> None:
    """Run a kernel; loads must be within `ranges` (anywhere, if there are none)."""
    held = [np.array([argument]) for argument in arguments]
    addresses = (ctypes.c_void_p * len(held))(*(array.ctypes.data for array in held))
    sizes = (ctypes.c_size_t * len(held))(*(array.nbytes for array in held))
    within = np.array(list(ranges), np.uint64).reshape(-1, 2)
    entry(
        *(ctypes.c_uint(first_block), ctypes.c_uint(blocks), ctypes.c_uint(threads), addresses, sizes),
        *(ctypes.c_size_t(len(held)), ctypes.c_void_p(within.ctypes.data), ctypes.c_size_t(len(within))),
    )
