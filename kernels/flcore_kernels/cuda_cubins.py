"""Kernels compiled for one device by CuPy's NVRTC, and kept on disk.

CuPy's own way of compiling adds an option that flushes denormal numbers to zero, whatever is asked for, and then bits
are not what they should be; so its compiler is asked directly, and CuPy loads what came out.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from flcore_kernels.cuda_kernels import OPTIONS, source
from flcore_kernels.errors import BackendUnavailable
from flcore_kernels.kept import directory_of


class Cubins:
    """The current device's compiled kernels: a file each, named by the kernel and by its name in the compiled code."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._directory: Path | None = None

    def load(self, kernel: str) -> Any:
        """Return a kernel, or raise `BackendUnavailable` where it cannot be compiled."""
        cupy = self._cupy
        try:
            directory = self._directory = self._directory or self._kept()
            key = hashlib.sha256(kernel.encode()).hexdigest()[:16]
            for kept in directory.glob(f"{key}-*.cubin"):
                return cupy.RawModule(path=str(kept)).get_function(kept.stem.partition("-")[2])
            code, names = cupy.cuda.compiler.compile_using_nvrtc(
                source(), OPTIONS, name_expressions=(kernel,), cache_in_memory=True
            )
            path = directory / f"{key}-{names[kernel]}.cubin"
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(code)
            temporary.replace(path)
            return cupy.RawModule(path=str(path)).get_function(names[kernel])
        except (ImportError, OSError, RuntimeError, cupy.cuda.compiler.CompileException) as error:
            raise BackendUnavailable(
                f"CuPy does not compile kernels here: {error}. It takes NVRTC, which flcore[cuda13] and "
                "flcore[cuda12] bring, or a CUDA Toolkit"
            ) from error

    def _kept(self) -> Path:
        """Return the directory of the current device's kind; one for this process where none is the user's alone."""
        cupy = self._cupy
        capability = cupy.cuda.Device().compute_capability
        versions = f"{cupy.__version__} {cupy.cuda.nvrtc.getVersion()} {capability}"
        digest = hashlib.sha256("\n".join([source(), *OPTIONS, versions]).encode()).hexdigest()[:20]
        return directory_of(f"cuda-{digest}") or Path(tempfile.mkdtemp(prefix="flcore-"))
