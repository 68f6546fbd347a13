"""The models of the round benchmarks: tables of shapes, and values that take no memory.

The job in `synthetic/` makes its initial model from a table; its seed is the size. The arrays are broadcast views of
one value, so the server's own copy of the model is the only one in memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import flcore

Table = list[tuple[str, str, tuple[int, ...]]]
"""A model as rows of name, dtype and shape."""

SMALL_TENSORS = 10_000
VALUE = 0.5


def flat_table(size: int, dtype: str = "float32") -> Table:
    """One tensor of `size` bytes."""
    return [("weight", dtype, (size // np.dtype(dtype).itemsize,))]


def many_table(size: int) -> Table:
    """Ten thousand float32 tensors of `size` bytes in total. On the wire, each is padded to a multiple of 1 KiB."""
    return [(f"layer.{number:04d}", "float32", (size // 4 // SMALL_TENSORS,)) for number in range(SMALL_TENSORS)]


def gpt2_large_table(shrink: int) -> Table:
    """GPT-2 Large in float32 with all widths divided by `shrink`. The tied head is sent once, as the embedding."""
    width, vocabulary, context = 1280 // shrink, 50_257 // shrink, 1024 // shrink
    shapes: list[tuple[str, tuple[int, ...]]] = [("wte", (vocabulary, width)), ("wpe", (context, width))]
    for layer in range(36):
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }
        shapes += [(f"h.{layer}.{name}", shape) for name, shape in block.items()]
    shapes += [("ln_f.weight", (width,)), ("ln_f.bias", (width,))]
    return [(name, "float32", shape) for name, shape in shapes]


def llama_3b_table(shrink: int) -> Table:
    """Llama-3.2-3B in bfloat16 with all widths divided by `shrink`. The tied head is sent once, as the embedding."""
    width, keys, inner, vocabulary = 3072 // shrink, 1024 // shrink, 8192 // shrink, 128_256 // shrink
    shapes: list[tuple[str, tuple[int, ...]]] = [("embed_tokens", (vocabulary, width))]
    for layer in range(28):
        block = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        shapes += [(f"layers.{layer}.{name}", shape) for name, shape in block.items()]
    return [(name, "bfloat16", shape) for name, shape in [*shapes, ("norm", (width,))]]


SHAPES: dict[str, Callable[[int], Table]] = {
    "flat": flat_table,
    "flat_bfloat16": lambda size: flat_table(size, "bfloat16"),
    "many": many_table,
    "gpt2_large": gpt2_large_table,
    "llama_3b": llama_3b_table,
}
"""Every shape by name. The argument is the size in bytes, or the divisor of all widths."""


def spec_named(shape: str, size: int) -> flcore.ModelSpec:
    """Return the spec of a shape at a size."""
    return flcore.ModelSpec(tuple(flcore.TensorSpec(*row) for row in SHAPES[shape](size)))


def constant(table: Table) -> dict[str, npt.NDArray[Any]]:
    """Return arrays of one value: broadcast views of a single element."""
    return {name: np.broadcast_to(np.full((), VALUE, np.dtype(dtype)), shape) for name, dtype, shape in table}
