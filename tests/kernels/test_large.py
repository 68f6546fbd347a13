"""A tensor of 5 GB: addresses and counts beyond 2^32 bytes. Takes 11 GB of memory; run by `make test-large`."""

import numpy as np
import pytest
from flcore_kernels import backend

ELEMENTS = 5 * 10**9 // 4 + 77
STEP = 10**8


@pytest.mark.large
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_every_element_of_a_tensor_of_5_gb_is_reached_once(accumulate: str) -> None:
    operand, out = np.empty(ELEMENTS, np.float32), np.empty(ELEMENTS, np.float32)
    for start in range(0, ELEMENTS, STEP):
        numbers = np.arange(start, min(start + STEP, ELEMENTS)) % 8191 - 4000
        operand[start : start + STEP] = numbers
    out.fill(np.nan)
    backend("cpu").mean([operand, operand, operand], [1.0, 2.0, 1.0], out, "float32", accumulate)
    for start in range(0, ELEMENTS, STEP):
        assert np.array_equal(out[start : start + STEP], operand[start : start + STEP])
