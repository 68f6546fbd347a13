"""Kernels compiled with NVRTC for one device, and cached on disk.

CuPy's `RawModule` always adds an option that flushes denormal numbers to zero, which changes bits. So NVRTC is called
through CuPy's lower layer, with our options only, and CuPy loads the result.
"""

import hashlib
from pathlib import Path
from typing import Any

from flcore_kernels import code_cache
from flcore_kernels.cuda.kernels import OPTIONS, source
from flcore_kernels.errors import BackendUnavailable


class CubinCache:
    """The current device's compiled kernels, one file each: the kernel's mangled name, a zero byte, and the code."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def load(self, kernel: str) -> Any:
        """Return a kernel, or raise `BackendUnavailable` if it cannot be compiled."""
        cupy = self._cupy
        try:
            path = self._path(kernel)
            found = code_cache.read(path) if path else None
            if found is not None:
                try:
                    return self._function(found)
                except RuntimeError as error:  # perhaps a driver older than the code
                    code_cache.warn_once(f"a compiled kernel is compiled anew, as it cannot be loaded: {error}")
            code, names = cupy.cuda.compiler.compile_using_nvrtc(
                source(), OPTIONS, name_expressions=(kernel,), cache_in_memory=True
            )
            made = names[kernel].encode() + b"\0" + code
            if path:
                code_cache.write(path, made)
            return self._function(made)
        except (ImportError, OSError, RuntimeError, cupy.cuda.compiler.CompileException) as error:
            raise BackendUnavailable(
                f"CUDA kernels cannot be compiled: {error}. That needs NVRTC: install flcore[cuda13], flcore[cuda12] "
                "or a CUDA Toolkit"
            ) from error

    def _function(self, named_code: bytes) -> Any:
        name, _, code = named_code.partition(b"\0")
        module = self._cupy.cuda.function.Module()
        module.load(code)
        return module.get_function(name.decode())

    def _path(self, kernel: str) -> Path | None:
        """Return the file of a kernel for the current device's compute capability; None without a cache."""
        cupy = self._cupy
        capability = cupy.cuda.Device().compute_capability
        versions = f"{cupy.__version__} {cupy.cuda.nvrtc.getVersion()} {capability}"
        digest = hashlib.sha256("\n".join([source(), *OPTIONS, versions]).encode()).hexdigest()[:20]
        directory = code_cache.directory_for(f"cuda-{digest}")
        return directory / f"{hashlib.sha256(kernel.encode()).hexdigest()[:16]}.cubin" if directory else None
