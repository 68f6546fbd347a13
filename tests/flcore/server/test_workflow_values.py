"""Values of a workflow come back from the run's record as they were, or are refused."""

import enum
import math
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from flcore import JobError
from flcore.server.workflow_values import decode_values, encode_values, replace_values


class Color(enum.IntEnum):
    RED = 1


KEPT: dict[str, Any] = {
    "bfloat16": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "float8": np.ones(3, ml_dtypes.float8_e4m3fn),
    "int4": np.array([1, -2], ml_dtypes.int4),
    "a bfloat16 of no dimension": np.array(1.5, ml_dtypes.bfloat16),
    "every second bfloat16": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)[::2],
    "no bfloat16": np.zeros((0, 3), ml_dtypes.bfloat16),
    "a bfloat16 scalar": ml_dtypes.bfloat16(1.5),
    "float64 scalar": np.float64(0.1),
    "float32 scalar": np.float32(0.1),
    "bool scalar": np.bool_(True),
    "int scalar": np.int16(-3),
    "text scalar": np.str_("a"),
    "time": np.array(["2026-01-01"], "M8[D]"),
    "time scalar": np.datetime64("2026-01-01"),
    "records": np.zeros(2, [("a", "f4"), ("b", "i2")]),
    "big-endian": np.array([1.5], ">f4"),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "no dimension": np.array(3.0),
    "nan": math.nan,
    "minus zero": -0.0,
    "a large integer": 2**70,
    "nested": {"a": [1, 2.0, None, True, {"b": "c"}]},
}


def parts(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes(), np.asarray(value).flags.f_contiguous
    return type(value), repr(value)


@pytest.mark.parametrize("name", KEPT)
def test_a_value_comes_back_as_it_was(name: str) -> None:
    decoded = decode_values(encode_values({"x": KEPT[name]}))["x"]
    if name == "every second bfloat16":
        assert decoded.tobytes() == KEPT[name].tobytes() and decoded.dtype == KEPT[name].dtype
    else:
        assert parts(decoded) == parts(KEPT[name])
    assert not isinstance(decoded, np.ndarray) or decoded.flags.writeable


REFUSED: dict[str, tuple[Any, str]] = {
    "masked": (np.ma.masked_array([1.0, 2.0], [True, False]), "MaskedArray"),
    "records by attribute": (np.rec.array([(1.0,)], dtype=[("a", "f4")]), "recarray"),
    "objects": (np.array([object()]), "objects"),
    "records of bfloat16": (np.zeros(2, [("a", ml_dtypes.bfloat16)]), "a dtype that .npy files have"),
    "a scalar in a list": ([np.float64(0.1)], "after a restart"),
    "an array in a list": ([np.zeros(2)], "not JSON serializable"),
    "tuple": ((1, 2), "after a restart"),
    "keys that are no text": ({1: 2}, r"\{1: 2\} would be \{'1': 2\}"),
    "an enumeration": (Color.RED, "after a restart"),
    "a dict of another kind": (OrderedDict(a=1), "after a restart"),
    "a set": ({1}, "not JSON serializable"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_would_come_back_as_another_one_is_refused(name: str) -> None:
    value, told = REFUSED[name]
    with pytest.raises(JobError, match=rf"control.state\['x'\].*{told}"):
        encode_values({"x": value})


def test_values_of_an_earlier_record_are_read() -> None:
    assert decode_values({"x": b"j[1]"}) == {"x": [1]}


def test_the_dict_of_the_workflow_stays_the_same() -> None:
    values: dict[str, Any] = {"a": np.float64(1.0), "b": 2}
    seen = values
    replace_values(values, encode_values({"a": np.float64(3.0)}))
    assert seen == {"a": 3.0} and type(seen["a"]) is np.float64
