"""The kernels' sources, their compiler options, and the names of their instances.

The sources in `cuda/source` are C++ templates, compiled for one dtype and one accumulator when they are first launched.
The options forbid what would change bits: contracting a product with a sum, flushing denormals, imprecise division.
"""

from functools import cache
from pathlib import Path

FILES = (
    *("memory", "decode", "encode", "digits", "float", "exact", "quotient", "long_division", "finish", "scan"),
    "kernels",
)
THREADS = 256
"""Threads of a block: 16 groups of sixteen lanes. The sources' launch bounds assume it."""

OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", f"-DTHREADS={THREADS}")

REALS = {"float32": "float", "float64": "double"}
ENCODERS = {"float64": "ToFloat64", "float32": "ToFloat32", "float16": "ToFloat16", "bfloat16": "ToBfloat16"}


@cache
def source() -> str:
    """Return the whole source: all files, concatenated in the order of `FILES`."""
    directory = Path(__file__).parent / "source"
    return "\n".join((directory / f"{name}.cuh").read_text(encoding="utf-8") for name in FILES)


def operand_type(dtype: str) -> str:
    """Return the C++ type that reads a dtype.

    >>> operand_type("int8[256]"), operand_type("bool"), operand_type("bfloat16")
    ('quantized<256>', 'boolean', 'bfloat16')
    """
    if dtype == "bool":
        return "boolean"
    return dtype.replace("int8[", "quantized<").replace("]", ">")


def result_type(dtype: str) -> str:
    """Return the C++ type that rounds and writes a dtype.

    >>> result_type("int16"), result_type("bool"), result_type("float16")
    ('ToInteger<int16>', 'ToBoolean', 'ToFloat16')
    """
    if dtype == "bool":
        return "ToBoolean"
    return ENCODERS.get(dtype) or f"ToInteger<{dtype}>"


def fold_kernel(dtype: str, accumulate: str) -> str:
    """Return the name of the kernel that adds rows of operands to a total."""
    if accumulate == "exact":
        return f"fold_exact<{operand_type(dtype)}>"
    return f"fold_float<{operand_type(dtype)}, {REALS[accumulate]}>"


def mean_kernel(dtype: str, accumulate: str, result: str, has_base: bool) -> str:
    """Return the name of the kernel that folds rows and finishes them, with a total that stays in registers."""
    written = f"{result_type(result)}, {str(has_base).lower()}"
    if accumulate == "exact":
        return f"mean_exact<{operand_type(dtype)}, {written}>"
    return f"mean_float<{operand_type(dtype)}, {REALS[accumulate]}, {written}>"


def finish_kernel(accumulate: str, result: str, has_base: bool) -> str:
    """Return the name of the kernel that finishes rows of a total."""
    written = f"{result_type(result)}, {str(has_base).lower()}"
    return f"finish_exact<{written}>" if accumulate == "exact" else f"finish_float<{REALS[accumulate]}, {written}>"


def merge_kernel(accumulate: str) -> str:
    """Return the name of the kernel that adds one total to another."""
    return "merge_exact" if accumulate == "exact" else f"merge_float<{REALS[accumulate]}>"


def max_abs_kernel(dtype: str) -> str:
    """Return the name of the kernel that finds the largest magnitude of each operand, and its first bad element."""
    return f"max_abs<{operand_type(dtype)}>"


def encode_kernel(dtype: str) -> str:
    """Return the name of the kernel that rounds float32 values to a narrower float."""
    return f"encode<{result_type(dtype)}>"


def quantize_kernel(block: int) -> str:
    """Return the name of the kernel that turns blocks of float32 values into codes and a scale."""
    return f"quantize<{block // 32}>"


def decode_kernel(dtype: str) -> str:
    """Return the name of the kernel that writes the float32 values of an operand."""
    return f"decode<{operand_type(dtype)}>"


FILL_KERNEL = "fill"
