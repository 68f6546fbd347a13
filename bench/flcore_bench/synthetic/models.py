"""The initial models of the round benchmarks, one function for each shape. The seed is the size."""

from flcore_bench.shapes import SHAPES, constant

import flcore


def flat(size: int) -> flcore.Arrays:
    """One float32 tensor of `size` bytes."""
    return constant(SHAPES["flat"](size))


def flat_bfloat16(size: int) -> flcore.Arrays:
    """One bfloat16 tensor of `size` bytes."""
    return constant(SHAPES["flat_bfloat16"](size))


def many(size: int) -> flcore.Arrays:
    """Ten thousand float32 tensors of `size` bytes in total."""
    return constant(SHAPES["many"](size))


def gpt2_large(shrink: int) -> flcore.Arrays:
    """GPT-2 Large with all widths divided by `shrink`."""
    return constant(SHAPES["gpt2_large"](shrink))


def llama_3b(shrink: int) -> flcore.Arrays:
    """Llama-3.2-3B with all widths divided by `shrink`."""
    return constant(SHAPES["llama_3b"](shrink))
