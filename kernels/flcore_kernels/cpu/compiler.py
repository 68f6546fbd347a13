"""Compiling the kernels with Numba, and caching the results on disk.

The cache's directory is named by a digest of everything that compiled code depends on: the sources of all kernels, the
versions of Python, Numba and llvmlite, the processor and its features, and Numba's settings. If one of them changes,
the name does, so stale code is never loaded. A kernel has one signature and one file, which is replaced atomically, so
that two processes may compile the same kernel at once.
"""

import gc
import hashlib
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import flcore_layout
import llvmlite
import llvmlite.binding
import numba
from numba.core import serialize
from numba.core.compiler import CompileResult

from flcore_kernels import code_cache
from flcore_kernels.cpu.device_function import OPTIONS, njit
from flcore_kernels.errors import KernelError

_COMPILING = threading.RLock()
_NOTICE = "flcore: compiling kernels for this processor; this happens once (`flcore warm` does it ahead)"
_NO_JIT = "the kernels are compiled code, and NUMBA_DISABLE_JIT forbids it: unset it, or set it to 0, and start again"
_INDIFFERENT = (
    *("_", "CACHE_", "COLOR_SCHEME", "CUDA_", "DISABLE_CUDA", "DISABLE_JIT", "GDB_BINARY", "HTML", "SHOW_HELP"),
    *("NUMBA_DEFAULT_NUM_THREADS", "NUMBA_NUM_THREADS", "THREADING_LAYER"),
)
"""Prefixes of Numba's settings that do not change the code. All others count, including those of later versions."""


def cache_directory() -> Path | None:
    """Return the cache's directory, created if missing; None, after a warning, if no directory can be used."""
    if not _SOURCES:
        code_cache.warn_once("compiled kernels are not kept, because the sources that name them cannot be read")
        return None
    return code_cache.directory_for(f"kernels-{_digest()}")


def _digest() -> str:
    versions = [sys.version, platform.machine(), numba.__version__, llvmlite.__version__]
    parts = [*versions, *_processor(), _settings(), _SOURCES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


@cache
def _processor() -> tuple[str, str]:
    name = llvmlite.binding.get_host_cpu_name()
    try:
        return name, llvmlite.binding.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot tell them on every platform
        return name, ""


def _settings() -> str:
    """Return the settings of Numba that may change the code: from the environment, its file and programs."""
    config = cast("Any", numba.config)
    config.reload_config()  # which the compiler does, too
    return repr(sorted((n, v) for n, v in vars(config).items() if n.isupper() and not n.startswith(_INDIFFERENT)))


def _digest_of_sources(*folders: Path) -> str:
    """Return a digest of the sources of all kernels; an empty string if they cannot be read, as in a zip archive."""
    sources = [
        (source.relative_to(folder).as_posix(), source)
        for folder in folders
        for source in sorted([*folder.glob("*.py"), *folder.glob("cpu/*.py")])
        if not source.name.startswith("device")
    ]
    try:
        texts = [name.encode() + b"\0" + source.read_bytes() for name, source in sources]
    except OSError:
        return ""
    return hashlib.sha256(b"".join(texts)).hexdigest() if texts else ""


_SOURCES = _digest_of_sources(Path(__file__).parents[1], Path(flcore_layout.__file__).parent)
"""Computed at import: if flcore is upgraded while a program runs, the program compiles the sources that it imported."""


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
        """Load or compile the kernel, and return whether it was compiled.

        `notice` prints, on a terminal, why this takes time. Raises `KernelError` if NUMBA_DISABLE_JIT is set.
        """
        return self._compiled is None and _undisturbed(lambda: self._warm(notice))

    def _warm(self, notice: bool) -> bool:
        with _COMPILING:
            if self._compiled is not None:
                return False
            if cast("Any", numba.config).DISABLE_JIT:
                raise KernelError(_NO_JIT)
            function = self._build()
            function.__qualname__ = self.name  # becomes part of symbols; all builders name their functions alike
            dispatcher = njit(**OPTIONS)(function)
            dispatcher._cache = file = _File(self.path(), notice)  # noqa: SLF001 - see there
            with _without_collector():
                dispatcher.compile(self._signature)
            dispatcher.disable_compile()  # arguments of other types are cast, and compile nothing
            self._compiled = dispatcher
            return not file.was_loaded

    def path(self) -> Path | None:
        """Return the file of the compiled code; None without a cache."""
        directory = cache_directory()
        return directory / f"{self.name}.nbc" if directory else None


class _File:
    """The file of a kernel, in place of Numba's own cache of compiled functions.

    Numba's cache is beside the source, depends on the age of that one file only, unpickles whatever it finds, lets two
    processes that compile different signatures write one index, and raises if a file is damaged or cannot be written. A
    dispatcher's `_cache`, and `_reduce` and `_rebuild` of a result, are not part of Numba's public API: pyproject.toml
    bounds its version for that, and a test checks that they still work.
    """

    def __init__(self, path: Path | None, notice: bool) -> None:
        self._path, self._notice = path, notice
        self.was_loaded = False

    def load_overload(self, _signature: Any, context: Any) -> Any:
        """Return the cached result of compiling; None if there is none that can be used."""
        reduced = code_cache.read(self._path) if self._path else None
        if reduced is not None:
            try:
                context.refresh()
                result = cast("Any", CompileResult)._rebuild(context, *serialize.loads(reduced))  # noqa: SLF001
            except Exception as error:  # noqa: BLE001 - after any error of unpickling or linking, compiling works
                code_cache.warn_once(f"a compiled kernel is compiled anew, as it cannot be loaded: {error!r}")
            else:
                self.was_loaded = True
                return result
        if self._notice:
            _tell_once()
        return None

    def save_overload(self, _signature: Any, result: Any) -> None:
        """Write the result of compiling to the file."""
        if self._path is None:
            return
        if result.lifted or result.library.has_dynamic_globals:
            code_cache.warn_once(
                "compiled kernels are not kept: they hold addresses of this process, as with NUMBA_OPT=0"
            )
            return
        try:
            reduced = cast("Any", serialize).dumps(result._reduce())  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 - after any error of pickling, the compiled code still runs
            code_cache.warn_once(f"compiled kernels are not kept: {error!r}")
        else:
            code_cache.write(self._path, reduced)


def _undisturbed(work: Callable[[], bool]) -> bool:
    """Call `work` on a thread that no signal interrupts. After Ctrl-C, the caller returns at once; the work goes on.

    Python runs signal handlers in the main thread. An exception from one, such as KeyboardInterrupt, in the middle of
    compiling leaves Numba's registries half filled and LLVM's objects freed twice; then the next call, or the exit of
    the process, crashes.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    pool = ThreadPoolExecutor(1, "flcore-compiling")
    try:
        try:
            future = pool.submit(work)
        except RuntimeError:  # no thread can start: a limit, or the interpreter is shutting down
            return work()
        return future.result()
    finally:
        pool.shutdown(wait=False)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause garbage collection: compiling makes millions of objects, and scanning them takes a sixth of the time."""
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
