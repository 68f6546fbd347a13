"""Device functions: functions that are compiled into every kernel that calls them, and never on their own.

By default, Numba makes machine code of each function, and wrappers to call it from Python and from C. That is a third
of a kernel's compile time, for code that nobody calls. So device functions have a pipeline of their own, which ends
with their LLVM module.
"""

from collections.abc import Callable
from typing import Any, cast

import numba
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

njit = cast("Callable[..., Any]", numba.njit)
OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
"""Threads run kernels without the interpreter's lock. A division by zero gives an infinity or a NaN, as in NumPy:
checks that raise would be branches in loops. `fastmath` is off, which would contract and reorder operations."""


class _DeviceFunctionLibrary(cast("Any", CPUCodeLibrary)):  # type: ignore[misc]
    """The LLVM module of a device function, for kernels to be linked with; no machine code is made of it."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@cast("Any", register_pass)(mutates_CFG=True, analysis_only=False)
class _DeviceFunctionLowering(NativeLowering):
    """Lowering to LLVM, without what makes a function callable from outside."""

    _name = "device_function_lowering"

    def run_pass(self, state: Any) -> bool:
        state.flags.no_compile = True
        state.library = _DeviceFunctionLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        cast("Any", super()).run_pass(state)
        # Numba registers a compiled function under a builtin, which must be unique. This bound method is never called.
        stand_in: Any = [None].append
        result = state["cr"]
        state.targetctx.insert_user_function(stand_in, result.fndesc, [state.library])
        state["cr"] = result._replace(cfunc=stand_in)
        return True


class _DeviceFunctionCompiler(CompilerBase):
    def define_pipelines(self) -> list[Any]:
        pipeline = cast("Any", DefaultPassBuilder).define_nopython_pipeline(self.state)
        pipeline.passes = [
            (_DeviceFunctionLowering if each is NativeLowering else each, why) for each, why in pipeline.passes
        ]
        pipeline.finalize()
        return [pipeline]


def device_function(function: Callable[..., Any]) -> Any:
    """Make a function callable from kernels. It is always inlined, because a call in a loop prevents vectorisation."""
    return njit(
        **OPTIONS,
        forceinline=True,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_DeviceFunctionCompiler,
    )(function)
