"""Compiling the loops, and keeping what was compiled.

Compiled code lives in a directory that only the user and root can change, named by a digest of everything that it
depends on: the sources of all kernels, the versions of Python, Numba and llvmlite, the processor and its features,
Numba's settings. Whatever changes, changes the name, so stale code is never met. A kernel has one signature and one
file, written beside and renamed, so that two processes may compile the same kernel at once.
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
"""How settings of Numba begin that do not change the code; all others count, those of later versions, too."""


def cache_directory() -> Path | None:
    """Return where compiled code is kept, made if need be; None, after a warning, where no directory can be used."""
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
    except RuntimeError:  # LLVM does not know them everywhere
        return name, ""


def _settings() -> str:
    """Return the settings of Numba that may change the code, from the environment, its file and what programs set."""
    config = cast("Any", numba.config)
    config.reload_config()  # which the compiler does, too
    return repr(sorted((n, v) for n, v in vars(config).items() if n.isupper() and not n.startswith(_INDIFFERENT)))


def _digest_of_sources(*folders: Path) -> str:
    """Return a digest of the sources of all kernels, or nothing where there are none, as in an archive."""
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
"""Taken when they are imported: a program that runs on while flcore is upgraded compiles what it imported."""


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
        """Make the kernel ready; returns whether it had to be compiled. `notice` tells a person why it takes time.

        Raises `KernelError` where Numba is told not to compile.
        """
        return self._compiled is None and _undisturbed(lambda: self._warm(notice))

    def _warm(self, notice: bool) -> bool:
        with _COMPILING:
            if self._compiled is not None:
                return False
            if cast("Any", numba.config).DISABLE_JIT:
                raise KernelError(_NO_JIT)
            function = self._build()
            function.__qualname__ = self.name  # symbols bear it, and kernels that stand in for each other share names
            dispatcher = njit(**OPTIONS)(function)
            dispatcher._cache = file = _File(self.path(), notice)  # noqa: SLF001 - see there
            with _without_collector():
                dispatcher.compile(self._signature)
            dispatcher.disable_compile()  # arguments of other types are cast, and compile nothing
            self._compiled = dispatcher
            return not file.was_loaded

    def path(self) -> Path | None:
        """Return the file that the compiled code is kept in; None where it is not kept."""
        directory = cache_directory()
        return directory / f"{self.name}.nbc" if directory else None


class _File:
    """The file of a kernel, in place of Numba's own cache of compiled functions.

    Numba would put it beside the source, key it by that one file's age, unpickle whatever it holds, let two processes
    that compile different signatures at once write into one file, and end the computation where a file is damaged or
    cannot be written. A dispatcher's `_cache`, and how a result is reduced and rebuilt, are not part of Numba's public
    surface: pyproject.toml bounds its version for that, and a test holds that they still do what they did.
    """

    def __init__(self, path: Path | None, notice: bool) -> None:
        self._path, self._notice = path, notice
        self.was_loaded = False

    def load_overload(self, _signature: Any, context: Any) -> Any:
        """Return the kept result of compiling; None where there is none that can be used."""
        reduced = code_cache.read(self._path) if self._path else None
        if reduced is not None:
            try:
                context.refresh()
                result = cast("Any", CompileResult)._rebuild(context, *serialize.loads(reduced))  # noqa: SLF001
            except Exception as error:  # noqa: BLE001 - whatever unpickling and linking raise, compiling needs neither
                code_cache.warn_once(f"a compiled kernel is compiled anew, as it cannot be loaded: {error!r}")
            else:
                self.was_loaded = True
                return result
        if self._notice:
            _tell_once()
        return None

    def save_overload(self, _signature: Any, result: Any) -> None:
        """Keep the result of compiling."""
        if self._path is None:
            return
        if result.lifted or result.library.has_dynamic_globals:
            code_cache.warn_once(
                "compiled kernels are not kept: they hold addresses of this process, as with NUMBA_OPT=0"
            )
            return
        try:
            reduced = cast("Any", serialize).dumps(result._reduce())  # noqa: SLF001
        except Exception as error:  # noqa: BLE001 - whatever pickling raises, the code is there and runs
            code_cache.warn_once(f"compiled kernels are not kept: {error!r}")
        else:
            code_cache.write(self._path, reduced)


def _undisturbed(work: Callable[[], bool]) -> bool:
    """Do something with Numba where no signal reaches it; the caller is interrupted at once, and the work is finished.

    Python handles signals in the main thread. What they raise there, as Ctrl-C does, leaves Numba's registries half
    filled and LLVM's objects freed twice, and the next call, or the end of the process, crashes.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    pool = ThreadPoolExecutor(1, "flcore-compiling")
    try:
        try:
            future = pool.submit(work)
        except RuntimeError:  # no more threads: a limit on them, or the interpreter ends
            return work()
        return future.result()
    finally:
        pool.shutdown(wait=False)


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
