"""The CPU kernels that the suite needs: compiled once, ahead of the tests, for all workers (`python -m tests.run`)."""

from flcore_kernels import ACCUMULATORS, STORAGE
from flcore_kernels.cpu.warm import Key

from tests.kernels.cases import BASES, PAIRS, QUANTIZED, RESULTS
from tests.reference import DTYPES, FLOATS, INTEGERS, ORDERED


def _result(dtype: str) -> str:
    return "float32" if dtype in QUANTIZED else dtype


OF_ONE_TEST: list[Key] = [
    ("mean", "bfloat16", "float32", "float32"),
    ("mean", "float32", "exact", "uint8"),
    *(("mean", "float32", "float64", result) for result in ("float16", "int8")),
    *(("mean", "float32", "float32", result) for result in ("float16", "bfloat16", "uint8", "int16")),
    *(
        ("mean-base", dtype, "exact", "float32")
        for dtype in ("float16", "bfloat16", "int8[64]", "int8[128]", "int8[256]")
    ),
    ("mean-base", "int8[256]", "exact", "float64"),
    *(("mean-base", dtype, "exact", dtype) for dtype in ("float16", "int64", "int8", "bool")),
    *(("finish-base", "exact", dtype) for dtype in ("int64", "bool")),
    *(("finish", "float32", result) for result in ("uint8", "int16")),
    ("finish", "float64", "int8"),
]
"""Beyond the pairs: a benchmark, results that do not fit, differences on narrow wires, bases of every kind."""

OF_THE_LAW: list[Key] = [
    key
    for dtype in DTYPES
    for accumulate in (["exact"] if dtype in INTEGERS else ACCUMULATORS)
    for key in [
        *((verb, dtype, accumulate, dtype) for verb in ("mean", "mean-base")),
        *((verb, accumulate, dtype) for verb in ("finish", "finish-base")),
        ("fold", dtype, accumulate),
        ("exact-fallback", dtype),
    ]
]
"""What the law of admission may draw: each dtype with each accumulator, with a base and without."""

MEDIANS = ("float32", "bfloat16", "int64")
"""Dtypes whose medians the laws of rules draw."""

OF_ORDER: list[Key] = [
    *((verb, dtype, dtype) for dtype in ORDERED for verb in ("median", "weighted-median")),
    *((verb, dtype, dtype) for dtype in FLOATS for verb in ("trimmed-mean", "weighted-trimmed-mean")),
    *((verb, dtype, "float64") for dtype in [*ORDERED, "bool"] for verb in ("trimmed-mean", "weighted-trimmed-mean")),
    *((verb, dtype, "float64") for dtype in (*MEDIANS, "float16", "bool") for verb in ("median", "weighted-median")),
    *(("mean-around-median", dtype, "float64") for dtype in [*ORDERED, "bool"]),
    *(("mean-around-median", dtype, dtype) for dtype in FLOATS),
]
"""Order statistics, in the dtype of their operands and in float64, which the rules take."""

OF_GEOMETRY: list[Key] = [
    *(("distances", dtype) for dtype in FLOATS),
    *(
        ("mix", dtype, "float32" if dtype in FLOATS and dtype != "float64" else "float64")
        for dtype in [*ORDERED, "bool"]
    ),
]
"""Squared distances, and combinations of updates."""

OF_STEP: list[Key] = [
    ("step", formula, mean, dtype)
    for dtype in FLOATS
    for mean in ("float32", "float64")
    for formula in ("scaled", "momentum", "adaptive", "yogi")
]
"""Every formula of a server optimizer, with means and models of every dtype."""

NEEDED: list[Key] = list(
    dict.fromkeys(
        [
            *(("mean", dtype, accumulate, _result(dtype)) for dtype, accumulate in PAIRS),
            *(("fold", dtype, accumulate) for dtype, accumulate in PAIRS),
            *(("finish", accumulate, _result(dtype)) for dtype, accumulate in PAIRS),
            *(("mean", dtype, "exact", result) for dtype, result in RESULTS),
            *(("mean-base", dtype, accumulate, _result(dtype)) for dtype, accumulate in BASES),
            *(("finish-base", accumulate, _result(dtype)) for dtype, accumulate in BASES),
            *OF_ONE_TEST,
            *OF_THE_LAW,
            *OF_ORDER,
            *OF_GEOMETRY,
            *OF_STEP,
            *(("max-abs", dtype) for dtype in STORAGE),
            *(("decode", dtype) for dtype in ("float32", "float16", "bfloat16", "int64", *QUANTIZED)),
            *(("encode", dtype) for dtype in ("float16", "bfloat16")),
            *(("quantize", str(STORAGE[dtype].block)) for dtype in QUANTIZED),
            ("merge",),
        ]
    )
)
