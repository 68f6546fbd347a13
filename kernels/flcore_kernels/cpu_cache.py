"""Compiling the loops, and keeping what was compiled.

Compiled code lives in a directory of the user's own, named by a digest of everything that it depends on: the sources of
all kernels, the versions of Python, Numba and llvmlite, the processor and its features. Whatever changes, changes the
name, so stale code is never met. A kernel has one signature and one file, written beside and renamed, so that two
processes may compile the same kernel at once.
"""

import gc
import hashlib
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import llvmlite
import llvmlite.binding
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from flcore_kernels.cpu_part import OPTIONS, njit
from flcore_kernels.kept import directory_of

_COMPILING = threading.RLock()
_NOTICE = "flcore: compiling kernels for this processor; this happens once (`flcore warm` does it ahead)"


@cache
def cache_directory() -> Path | None:
    """Return where compiled code is kept, made if need be; None where no directory is the user's alone."""
    return directory_of(f"kernels-{_digest()}")


def _digest() -> str:
    parts = [sys.version, platform.machine(), numba.__version__, llvmlite.__version__]
    parts += [llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()]
    state = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.name.startswith(("cuda", "device")):
            continue
        state.update(source.name.encode() + b"\0" + source.read_bytes())
    return state.hexdigest()[:20]


class Kernel:
    """One loop for one signature, compiled or fetched from disk when it is first called."""

    def __init__(self, name: str, signature: Any, build: Callable[[], Callable[..., Any]]) -> None:
        self.name = name
        self._signature, self._build = signature, build
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the loop."""
        if self._compiled is None:
            self.warm()
        return self._compiled(*arguments)  # type: ignore[misc]

    def warm(self, notice: bool = True) -> bool:
        """Make the kernel ready; returns whether it had to be compiled. `notice` tells a person why it takes time."""
        with _COMPILING:
            if self._compiled is not None:
                return False
            dispatcher = njit(**OPTIONS)(self._build())
            directory = cache_directory()
            if directory is not None:
                dispatcher._cache = _file_cache(dispatcher.py_func, directory, self.name)  # noqa: SLF001 - see there
            kept = directory is not None and (directory / f"{self.name}.nbi").exists()
            if notice and not kept:
                _tell_once()
            with _without_collector():
                dispatcher.compile(self._signature)
            self._compiled = dispatcher
            return not kept


@contextmanager
def _without_collector() -> Iterator[None]:
    """Compiling makes millions of objects that are all in use; looking for garbage among them takes a sixth of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _tell_once() -> None:
    if sys.stderr.isatty():
        print(_NOTICE, file=sys.stderr)


def _file_cache(function: Callable[..., Any], directory: Path, name: str) -> FunctionCache:
    """Return Numba's own cache of compiled functions, in a file of our choice.

    Numba would put it beside the source, key it by that one file's age, and let two processes that compile different
    signatures at once write into one file. (The three names below are not part of Numba's public surface; a test holds
    that they still do what they did.)
    """

    class Locator(_CacheLocator):
        def get_cache_path(self) -> str:
            return str(directory)

        def get_source_stamp(self) -> str:
            return directory.name

        def get_disambiguator(self) -> str:
            return name

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> "Locator":  # noqa: ARG003
            return cls()

    class Implementation(CompileResultCacheImpl):
        _locator_classes = cast("Any", [Locator])

        @property
        def filename_base(self) -> str:
            return name

    class Cache(FunctionCache):
        _impl_class = Implementation

        def _index_key(self, sig: Any, codegen: Any) -> Any:
            return sig, codegen.magic_tuple(), name

    return cast("Callable[..., FunctionCache]", Cache)(function)
