"""The host's side of the CUDA backend, on a played device: portions, streams, memory, arrays that are there already."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import Backend, BufferMismatch, NotFinite, OutOfDeviceMemory, Quantized, SpoiledTotal, backend
from flcore_kernels.cuda.backend import CudaBackend
from flcore_kernels.cuda.ring import SLOTS, Slot

from tests.kernels.cases import draw, finished, folded, mean, state_of
from tests.kernels.exporters import Exporter, Interfaced
from tests.kernels.shim.compiled import EMULATED
from tests.kernels.shim.device import ShimDevice, ShimStream

pytestmark = EMULATED

CPU = backend("cpu")
PORTION = 64 << 10
SIZE = 100_003
WEIGHTS = [1.0, 0.1, 3.0, 2.5]


@pytest.fixture
def played() -> ShimDevice:
    return ShimDevice()


@pytest.fixture
def cuda(played: ShimDevice) -> CudaBackend:
    return CudaBackend(played, 2, PORTION)


def parts_of(size: int = SIZE, count: int = 4) -> list[npt.NDArray[Any]]:
    return [draw(np.random.default_rng(seed), "float32", size).operand for seed in range(count)]


@pytest.mark.parametrize("accumulate", ["exact", "float64", "float32"])
def test_what_goes_there_in_pieces_gives_the_bits_of_the_cpu(
    cuda: CudaBackend, played: ShimDevice, accumulate: str
) -> None:
    operands = parts_of()
    found = mean(cuda, operands, WEIGHTS, "float32", accumulate, "float32", SIZE)
    assert len(played.launched) > 2 * SLOTS, "the ring was to take several turns"
    assert found.tobytes() == mean(CPU, operands, WEIGHTS, "float32", accumulate, "float32", SIZE).tobytes()
    ours, theirs = (folded(each, operands, WEIGHTS, "float32", accumulate, SIZE) for each in (cuda, CPU))
    assert state_of(cuda, ours) == state_of(CPU, theirs)


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_a_total_goes_on_where_it_was_on_the_other_device(cuda: CudaBackend, accumulate: str) -> None:
    operands = parts_of()

    def moved(one: Backend, other: Backend) -> bytes:
        file = io.BytesIO(state_of(one, folded(one, operands[:2], WEIGHTS[:2], "float32", accumulate, SIZE)))
        total = other.restore(file)
        other.fold(total, operands[2:], WEIGHTS[2:], "float32")
        return state_of(other, total)

    assert moved(cuda, CPU) == moved(CPU, cuda) == moved(CPU, CPU)


def test_the_devices_memory_does_not_grow_with_what_goes_there(played: ShimDevice, cuda: CudaBackend) -> None:
    mean(cuda, parts_of(8 * SIZE), WEIGHTS, "float32", "exact", "float32", 8 * SIZE)
    assert 8 * SIZE * 20 > 10 * SLOTS * 2 * PORTION > 10 * played.peak
    cuda.fold(cuda.total(SIZE, "exact"), parts_of(), WEIGHTS, "float32")
    assert played.peak <= SLOTS * 2 * PORTION + 16.04 * SIZE + 4096


def test_one_launch_serves_a_chunk_whatever_the_number_of_clients(played: ShimDevice, cuda: CudaBackend) -> None:
    operands = parts_of(5000, 40)
    resident = [played.resident(operand) for operand in operands]
    total = cuda.total(5000, "exact")
    played.launched.clear()
    cuda.fold(total, anything(resident), [1.0] * 40, "float32")
    assert played.launched == [("fold_exact<float32>", 2)]
    assert state_of(cuda, total) == state_of(CPU, folded(CPU, operands, [1.0] * 40, "float32", "exact", 5000))


@pytest.mark.parametrize(("multiprocessors", "threads"), [(1, 256), (3, 512), (200, 2048)])
@pytest.mark.parametrize("size", [1, 4095, 4097, 70_001])
def test_launches_are_as_wide_as_the_device_and_the_work_are(multiprocessors: int, threads: int, size: int) -> None:
    device = ShimDevice(multiprocessors=multiprocessors, threads=threads)
    cuda, operands = CudaBackend(device, 1, 4 << 20), parts_of(size)
    for accumulate in ("exact", "float32"):
        found = mean(cuda, operands, WEIGHTS, "float32", accumulate, "float32", size)
        assert found.tobytes() == mean(CPU, operands, WEIGHTS, "float32", accumulate, "float32", size).tobytes()
    assert cuda.inspect(operands[0], "float32") == CPU.inspect(operands[0], "float32")
    rows = -(-size // 4096)
    widest = max(blocks for _, blocks in device.launched)
    assert widest == min(rows, multiprocessors * threads // 256), "one block a row, or as many as run at once"


def test_two_streams_are_all_there_are(played: ShimDevice, cuda: CudaBackend) -> None:
    mean(cuda, parts_of(), WEIGHTS, "float32", "exact", "float32", SIZE)
    assert played.streams == 2


def anything(thing: Any) -> Any:
    """Return something as what a verb takes, whatever its type."""
    return thing


def no_wait(*_: Any) -> None:
    """Where somebody should have waited."""


@pytest.mark.parametrize("forgotten", ["a kernel for its portion", "a slot for its work"])
def test_a_wait_that_is_forgotten_shows(
    cuda: CudaBackend, played: ShimDevice, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    operands = parts_of()
    expected = mean(CPU, operands, WEIGHTS, "float32", "float32", "float32", SIZE)
    complete = Slot.complete

    def hasty(slot: Slot) -> None:
        slot.done = None
        complete(slot)

    if forgotten == "a kernel for its portion":
        monkeypatch.setattr(ShimStream, "wait", no_wait)
    else:
        monkeypatch.setattr(Slot, "complete", hasty)
    found = mean(cuda, operands, WEIGHTS, "float32", "float32", "float32", SIZE)
    assert found.tobytes() != expected.tobytes()


def test_parts_on_the_device_and_parts_in_memory_may_be_mixed(cuda: CudaBackend, played: ShimDevice) -> None:
    operands = parts_of()
    mixed = [played.resident(operand) if k % 2 else operand for k, operand in enumerate(operands)]
    out = played.resident(np.zeros(SIZE, np.float32))
    cuda.mean(anything(mixed), WEIGHTS, anything(out), "float32", base=operands[3])
    expected = np.empty(SIZE, np.float32)
    CPU.mean(operands, WEIGHTS, expected, "float32", base=operands[3])
    assert played.told(out).tobytes() == expected.tobytes()
    sizes = [700, 0, 33_000]
    tensors = [[operand[: sizes[0]], operand[:0], operand[-sizes[2] :]] for operand in operands]
    there = [[played.resident(t[0]), t[1], t[2]] for t in tensors]
    end = 768 + 33_000
    found = folded(cuda, there, WEIGHTS, "float32", "exact", end)
    assert state_of(cuda, found) == state_of(CPU, folded(CPU, tensors, WEIGHTS, "float32", "exact", end))


def test_codes_may_be_there_and_scales_here(cuda: CudaBackend, played: ShimDevice) -> None:
    operand = draw(np.random.default_rng(1), "int8[64]", 5000).operand
    there = Quantized(anything(played.resident(operand.codes)), operand.scales)
    found = folded(cuda, [there], [2.0], "int8[64]", "exact", 5000)
    assert state_of(cuda, found) == state_of(CPU, folded(CPU, [operand], [2.0], "int8[64]", "exact", 5000))


def test_arrays_of_libraries_are_read_in_their_order(cuda: CudaBackend, played: ShimDevice) -> None:
    operand = parts_of(1000, 1)[0]
    exporter, named = Exporter(played.resident(operand)), Interfaced(played.resident(operand), stream=9)
    total = cuda.total(1000, "exact")
    cuda.fold(total, [anything(exporter), [anything(named)]], [1.0, 2.0], "float32")
    assert exporter.streams == [cuda._ring.work.pointer] and played.followed == [9]
    out = Exporter(played.resident(np.zeros(1000, np.float32)))
    cuda.finish(total, anything(out), "float32")
    expected = finished(CPU, folded(CPU, [operand], [3.0], "float32", "exact", 1000), "float32")
    assert played.told(out.array).tobytes() == expected.tobytes()


def test_arrays_that_cannot_be_what_they_are_folded_as_are_refused(cuda: CudaBackend, played: ShimDevice) -> None:
    half = played.resident(np.zeros(10, np.uint16))
    for thing, dtype, words in (
        (
            Exporter(half, code=4, bits=16),
            "float16",
            "operand 0: expected float16, got an array of bfloat16 on a device",
        ),
        (Exporter(half, code=4, bits=16), "uint16", "operand 0: expected uint16, got an array of bfloat16"),
        (Exporter(half, device=2), "uint16", r"it is on device 2, and this backend works on device 0: .*'cuda:2'"),
        (
            replace(half, address=half.address + 1),
            "uint16",
            "operand 0: expected an address that is a multiple of 2 bytes",
        ),
        (replace(half, device=3), "uint16", "operand 0 is on device 3, and this backend works on device 0"),
        (Exporter(half, strides=(2,)), "uint16", r"got strided uint16 .*on a device"),
        (Exporter(half), "float32", "expected a contiguous buffer of 10 float32, got contiguous uint16"),
    ):
        with pytest.raises(BufferMismatch, match=words):
            cuda.fold(cuda.total(10, "exact"), [anything(thing)], [1.0], dtype)
    there = played.resident(np.zeros(10, np.float32))
    with pytest.raises(BufferMismatch, match="read-only"):
        cuda.decode(np.zeros(10, np.int8), anything(Interfaced(there, is_read_only=True)), "int8")
    with pytest.raises(BufferMismatch, match=r"got contiguous float32 of shape .* on a device"):
        CPU.fold(CPU.total(10, "exact"), [anything(there)], [1.0], "float32")


def test_memory_that_is_not_there_is_a_typed_error_and_nothing_is_lost() -> None:
    device = ShimDevice(budget=2 << 20)
    cuda = CudaBackend(device, 1, PORTION)
    with pytest.raises(OutOfDeviceMemory) as caught:
        cuda.total(1 << 20, "exact")
    assert caught.value.needed_bytes == 16 << 20
    operands = parts_of(50_000)
    total = folded(cuda, operands, WEIGHTS, "float32", "exact", 50_000)
    before = state_of(cuda, total)
    small = CudaBackend(ShimDevice(budget=900_000), 1, PORTION)
    held = small.total(50_000, "exact")
    with pytest.raises(OutOfDeviceMemory):
        small.fold(held, operands, WEIGHTS, "float32")
    with pytest.raises(SpoiledTotal):
        small.finish(held, np.empty(50_000, np.float32), "float32")
    assert state_of(cuda, total) == before


@pytest.mark.parametrize("step", ["upload", "wait", "launch", "download", "record"])
def test_an_interrupt_at_any_step_leaves_no_work_behind(
    cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    operands = parts_of()
    expected = mean(CPU, operands, WEIGHTS, "float32", "exact", "float32", SIZE)
    real, calls = getattr(ShimStream, step), []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(ShimStream, step, interrupted)
    out, total = np.full(SIZE, -1.0, np.float32), cuda.total(SIZE, "exact")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        cuda.fold(total, operands, WEIGHTS, "float32")
    del total
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        cuda.mean(operands, WEIGHTS, out, "float32")
    monkeypatch.undo()
    assert not cuda._ring.work._waiting and not cuda._ring.upload._waiting  # type: ignore[attr-defined]
    bad = [*operands[:3], operands[3].copy()]
    bad[3][SIZE - 1] = np.nan
    with pytest.raises(NotFinite, match=f"operand 3: element {SIZE - 1} is nan"):
        mean(cuda, bad, WEIGHTS, "float32", "exact", "float32", SIZE)
    assert mean(cuda, operands, WEIGHTS, "float32", "exact", "float32", SIZE).tobytes() == expected.tobytes()


def test_a_part_that_is_not_finite_is_to_blame_before_a_result_that_does_not_fit(cuda: CudaBackend) -> None:
    tensors = [np.full(130, 1e30, np.float32), np.full(5, np.nan, np.float32)]
    for device in (CPU, cuda):
        outs = [np.empty(130, np.uint16), np.empty(5, np.uint16)]
        with pytest.raises(NotFinite, match="operand 0: element 256 is nan"):
            device.mean([tensors], [1.0], outs, "float32", result="float16")


def test_tables_of_what_is_there_are_cut_into_pieces_too(played: ShimDevice, cuda: CudaBackend) -> None:
    sizes = [2] * 1500
    operands = [[np.full(size, k, np.float32) for size in sizes] for k in range(12)]
    room = played.resident(np.zeros(256 * 1500, np.float32))
    there = [[replace(room, shape=(2,), address=room.address + 1024 * i) for i in range(1500)] for _ in operands]
    total = cuda.total(256 * 1500, "float32")
    before = played.used
    cuda.fold(total, anything(there), [1.0] * 12, "float32")
    assert len([name for name, _ in played.launched if name.startswith("fold")]) > 1
    assert played.used - before <= SLOTS * 2 * PORTION
    other = cuda.total(256 * 1500, "float32")
    cuda.fold(other, operands, [1.0] * 12, "float32")
    outs = [np.empty(2, np.float32) for _ in sizes]
    cuda.finish(other, outs, "float32")
    assert all(out.tolist() == [5.5, 5.5] for out in outs)


def test_several_threads_may_call_at_once(cuda: CudaBackend) -> None:
    operands, results = parts_of(20_000), {}
    expected = state_of(CPU, folded(CPU, operands, WEIGHTS, "float32", "exact", 20_000))

    def work(number: int) -> None:
        total = folded(cuda, operands[:1], [1.0], "float32", "exact", 20_000)
        for _ in range(3):
            total.clear()
            cuda.fold(total, operands, WEIGHTS, "float32")
        results[number] = state_of(cuda, total)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number] == expected for number in range(4)] == [True] * 4


def test_a_total_of_another_backend_is_refused_by_every_verb(cuda: CudaBackend) -> None:
    operand, out = np.ones(100, np.float32), np.empty(100, np.float32)
    for one, other in ((cuda, CPU), (CPU, cuda)):
        total = folded(other, [operand], [1.0], "float32", "exact", 100)
        verbs: list[Callable[[], Any]] = [
            partial(one.fold, total, [operand], [1.0], "float32"),
            partial(one.finish, total, out, "float32"),
            partial(one.merge, one.total(100, "exact"), total),
            partial(one.merge, total, one.total(100, "exact")),
            partial(one.save, total, io.BytesIO()),
        ]
        for verb in verbs:
            with pytest.raises(BufferMismatch, match="in another backend's memory"):
                verb()


def test_memory_is_given_back_with_the_total(played: ShimDevice, cuda: CudaBackend) -> None:
    before = played.used
    total = cuda.total(SIZE, "exact")
    assert played.used - before >= total.nbytes == 16 * 1563 * 64 + 2 * 1563
    del total
    assert played.used == before
