"""How a model is shown in a session and in a notebook: its sizes in a line, its tensors in a table."""

from flcore.html_table import MAX_ROWS, html_table
from flcore.model.dtypes import DTYPES
from flcore.model.spec import ModelSpec
from flcore.number_text import bytes_text

MAX_DTYPES = 3


def describe_model(kind: str, spec: ModelSpec) -> str:
    """Return a model's sizes in one line.

    >>> import numpy as np
    >>> describe_model("Model", ModelSpec.of({"w": np.zeros((2, 3), np.float32)}))
    'Model: 1 tensor, 6 elements, float32, 24 bytes'
    """
    dtypes = [segment.dtype for segment in spec.segments]
    shown = ", ".join(dtypes[:MAX_DTYPES]) + (f" and {len(dtypes) - MAX_DTYPES} more" * (len(dtypes) > MAX_DTYPES))
    nbytes = sum(tensor.size * DTYPES[tensor.dtype].itemsize for tensor in spec.tensors)
    size = f"{nbytes:,} bytes" if nbytes < 1e6 else bytes_text(nbytes)
    count = len(spec.tensors)
    return f"{kind}: {count:,} tensor{'s' * (count != 1)}, {spec.parameters:,} elements, {shown}, {size}"


def model_html(kind: str, spec: ModelSpec) -> str:
    """Return a table of a model's tensors, the first `MAX_ROWS` of them."""
    rows = [
        [tensor.name, tensor.dtype, " x ".join(map(str, tensor.shape)) or "a number", f"{tensor.size:,}"]
        for tensor in spec.tensors[:MAX_ROWS]
    ]
    left_out = len(spec.tensors) - len(rows)
    return html_table(describe_model(kind, spec), ["tensor", "dtype", "shape", "elements"], rows, left_out)
