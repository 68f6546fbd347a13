"""Totals: merged, saved, restored, and refused where a byte is wrong."""

import io
import json
import resource
import zlib
from typing import Any

import numpy as np
import pytest
from flcore_kernels import (
    ACCUMULATORS,
    Backend,
    BadState,
    BufferMismatch,
    SpoiledTotal,
    Total,
    WeightRange,
    bytes_per_element,
)
from flcore_kernels.rows import address_of
from flcore_kernels.threads import Pool

from tests.kernels.cases import again, finished, folded, state_of

OPERANDS = [np.array([1.5, -2.0, 1e20], np.float32), np.array([0.25, 2.0**-40, -1e20], np.float32)]
GOLDEN = zlib.decompress(
    bytes.fromhex(
        "78da4bcb49ce2f4a5528c92f49cc5130e46288676460a8564a4c4e2ecd2dcd492c4955b252504aad484c2e51d2013272527353f3"
        "4a8a8182c6406e7172620e48415e694e0e905b925a940b923202b2cb5333d3334a409a0d2a0c0d46010228d532a081428dafff41"
        "8061148c08c00ca5fffdff8f887787d17019298091e1ddcbb99357e78a6f2d5dfaf88d65e5345600820168e0"
    )
)
"""What version 1 of the format writes of `OPERANDS` with weights 1 and 3 (deflated here): it is read for ever."""


def small(device: Backend, accumulate: str = "exact") -> Total:
    return folded(device, OPERANDS, [1.0, 3.0], "float32", accumulate, 3)


def test_a_total_is_saved_as_it_always_was(device: Backend) -> None:
    assert state_of(device, small(device)) == GOLDEN


def test_what_was_once_saved_is_still_read(device: Backend) -> None:
    total = device.restore(io.BytesIO(GOLDEN))
    assert (total.elements, total.accumulate, total.terms, total.weight) == (3, "exact", 2, 4 << 1074)
    assert finished(device, total, "float32").tobytes() == finished(device, small(device), "float32").tobytes()


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_a_restored_total_goes_on_where_it_was(device: Backend, accumulate: str) -> None:
    total = small(device, accumulate)
    restored = again(device, total)
    assert state_of(device, restored) == state_of(device, total)
    for each in (total, restored):
        device.fold(each, OPERANDS, [2.0, 0.5], "float32")
    assert state_of(device, restored) == state_of(device, total)


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_an_empty_total_is_saved_too(device: Backend, accumulate: str) -> None:
    for elements in (0, 100):
        total = again(device, device.total(elements, accumulate))
        assert (total.elements, total.accumulate, total.terms, total.weight) == (elements, accumulate, 0, 0)


def test_totals_may_follow_one_another_in_a_file(device: Backend) -> None:
    file = io.BytesIO()
    for accumulate in ACCUMULATORS:
        device.save(small(device, accumulate), file)
    file.seek(0)
    for accumulate in ACCUMULATORS:
        assert state_of(device, device.restore(file)) == state_of(device, small(device, accumulate))


def test_a_flipped_byte_is_bad_wherever_it_is(device: Backend) -> None:
    data = state_of(device, small(device))
    header = 20 + int.from_bytes(data[16:20], "little")
    for index in [*range(header), *range(header, len(data), 37), len(data) - 1]:
        for bit in (0x01, 0x80):
            changed = bytearray(data)
            changed[index] ^= bit
            with pytest.raises(BadState):
                device.restore(io.BytesIO(bytes(changed)))


def test_an_early_end_is_bad_wherever_it_is(device: Backend) -> None:
    data = state_of(device, small(device))
    for length in [*range(200), *range(200, len(data), 41), len(data) - 1]:
        with pytest.raises(BadState):
            device.restore(io.BytesIO(data[:length]))


def test_another_version_is_bad(device: Backend) -> None:
    data = state_of(device, small(device)).replace(b"flcore total 1\n", b"flcore total 2\n")
    with pytest.raises(BadState, match="not a saved total of this version"):
        device.restore(io.BytesIO(data))


@pytest.mark.parametrize(
    "header",
    [
        {"elements": 10**30, "accumulate": "exact", "terms": 1, "weight": "0x1", "scale": None},
        {"elements": 10**17, "accumulate": "exact", "terms": 1, "weight": "0x1", "scale": None},
        {"elements": -1, "accumulate": "exact", "terms": 1, "weight": "0x1", "scale": None},
        {"elements": 1e400, "accumulate": "exact", "terms": 1, "weight": "0x1", "scale": None},
        {"elements": 1, "accumulate": "float16", "terms": 1, "weight": "0x1", "scale": None},
        {"elements": 1, "accumulate": "exact", "terms": 1, "weight": "heavy", "scale": None},
        {"elements": 1, "accumulate": "exact"},
        [],
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_bad(device: Backend, header: Any) -> None:
    text = json.dumps(header).encode()
    data = b"flcore total 1\n\0" + len(text).to_bytes(4, "little") + text + bytes(2000)
    with pytest.raises(BadState, match="header"):
        device.restore(io.BytesIO(data))
    with pytest.raises(BadState, match=r"at most 4,096"):
        device.restore(io.BytesIO(b"flcore total 1\n\0" + b"\xff" * 100))


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_merged_float_totals_are_the_sum_of_both(device: Backend, accumulate: str) -> None:
    operands = [np.array([1.0, 2.0, 3.0], np.float32), np.array([5.0, 6.0, 9.0], np.float32)]
    for first, second in ((1.0, 3.0), (1e-20, 3e-20), (0.0, 1.0), (1.0, 0.0)):
        one = folded(device, operands[:1], [first], "float32", accumulate, 3)
        two = folded(device, operands[1:], [second], "float32", accumulate, 3)
        device.merge(one, two)
        mean = (first * operands[0].astype(np.float64) + second * operands[1].astype(np.float64)) / (first + second)
        assert np.allclose(finished(device, one, "float64"), mean, rtol=1e-6)
        assert one.terms == 2


def test_a_total_merged_with_an_empty_one_is_as_before(device: Backend) -> None:
    for accumulate in ACCUMULATORS:
        total, empty = small(device, accumulate), device.total(3, accumulate)
        before = state_of(device, total)
        device.merge(total, device.total(3, accumulate))
        device.merge(empty, total)
        assert state_of(device, total) == state_of(device, empty) == before


def test_only_two_totals_of_a_kind_are_merged(device: Backend) -> None:
    total = small(device)
    for other in (device.total(4, "exact"), device.total(3, "float64"), total):
        with pytest.raises(BufferMismatch, match="expected another total of"):
            device.merge(total, other)
    assert state_of(device, total) == state_of(device, small(device))


def test_a_spoiled_total_is_neither_saved_nor_merged(device: Backend) -> None:
    total = small(device)
    total.is_spoiled = True
    with pytest.raises(SpoiledTotal):
        state_of(device, total)
    with pytest.raises(SpoiledTotal):
        device.merge(small(device), total)


@pytest.mark.serial
def test_a_header_that_asks_for_more_than_the_file_holds_costs_no_memory(device: Backend) -> None:
    elements = 1 << 37
    header = json.dumps(
        {"elements": elements, "accumulate": "exact", "terms": 0, "weight": "0x0", "scale": None}, sort_keys=True
    ).encode()
    file = io.BytesIO(GOLDEN[:16] + len(header).to_bytes(4, "little") + header + bytes(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadState):
        device.restore(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_an_interrupted_fold_spoils_the_total(
    device: Backend, accumulate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = small(device, accumulate)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pool, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.fold(total, OPERANDS, [1.0, 3.0], "float32")
    monkeypatch.undo()
    with pytest.raises(SpoiledTotal):
        finished(device, total, "float32")


@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_a_total_that_was_cleared_is_as_good_as_new(device: Backend, accumulate: str) -> None:
    size = 1000
    rng = np.random.default_rng(1)
    total, expected, found = device.total(size, accumulate), np.empty(size, np.float32), np.empty(size, np.float32)
    where = address_of(total.values)
    for scale in (1e30, 1e-30, 1.0):
        operand = (rng.standard_normal(size) * scale).astype(np.float32)
        operand[64:256] = 0  # blocks that stay empty, whose digits are those of the round before
        fresh = device.total(size, accumulate)
        for each, out in ((fresh, expected), (total, found)):
            device.fold(each, [operand], [2.0], "float32")
            device.fold(each, [operand], [1.0], "float32")
            device.finish(each, out, "float32")
        assert found.tobytes() == expected.tobytes()
        merged = device.total(size, accumulate)
        device.merge(merged, total)
        device.finish(merged, found, "float32")
        assert found.tobytes() == expected.tobytes()
        total.clear()
        assert address_of(total.values) == where and total.terms == 0
    with pytest.raises(WeightRange):
        device.finish(total, found, "float32")


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_a_total_takes_what_is_planned_for_it(accumulate: str) -> None:
    assert Total.zeros(25_600, accumulate).nbytes == bytes_per_element(accumulate) * 25_600


def test_an_unknown_accumulator_is_refused_by_name() -> None:
    with pytest.raises(BufferMismatch, match="accumulate is one of exact, float64, float32, not 'x'"):
        bytes_per_element("x")
