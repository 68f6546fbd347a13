"""The CPU kernels that the suite needs: compiled once, ahead of the tests, for all workers (`python -m tests.run`)."""

from flcore_kernels import STORAGE
from flcore_kernels.cpu_warm import Key

from tests.kernels.cases import PAIRS, QUANTIZED, RESULTS


def _result(dtype: str) -> str:
    return "float32" if dtype in QUANTIZED else dtype


NEEDED: list[Key] = list(
    dict.fromkeys(
        [
            *(("mean", dtype, accumulate, _result(dtype)) for dtype, accumulate in PAIRS),
            *(("fold", dtype, accumulate) for dtype, accumulate in PAIRS),
            *(("finish", accumulate, _result(dtype)) for dtype, accumulate in PAIRS),
            *(("mean", dtype, "exact", result) for dtype, result in RESULTS),
            *(("largest", dtype) for dtype in STORAGE),
            *(("inspect", dtype) for dtype in STORAGE),
            *(("quantize", str(STORAGE[dtype].block)) for dtype in QUANTIZED),
            ("merge",),
        ]
    )
)
