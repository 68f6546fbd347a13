"""Updates on a device: combined where they are, given back there, and brought to the CPU where that cannot be.

The device is played by the processor, and the arrays are of a library that stands in for PyTorch and CuPy.
"""

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from flcore_kernels import BackendUnavailable, DeviceArray, OutOfDeviceMemory, described, devices
from flcore_kernels.cuda.backend import CudaBackend

import flcore
from flcore.model import array_libraries
from flcore.model.array_libraries import ArrayLibrary
from flcore.model.arrays import as_array
from tests.kernels.conftest import has_device
from tests.kernels.exporters import Exporter
from tests.kernels.shim.compiled import EMULATED
from tests.kernels.shim.device import ShimDevice

pytestmark = EMULATED

CODES: dict[Any, dict[str, Any]] = {
    np.dtype(ml_dtypes.bfloat16): {"dtype": "uint16", "code": 4, "bits": 16},
    np.dtype(bool): {"code": 6},
}
PIECE = 64 << 10


class There(Exporter):
    """An array on the played device, of a library of its own."""

    def __init__(self, device: ShimDevice, values: npt.NDArray[Any], strides: Any = None) -> None:
        super().__init__(device.resident(values), strides=strides, **CODES.get(values.dtype, {}))
        self.player, self.kept = device, values.dtype

    def values(self) -> npt.NDArray[Any]:
        return self.player.told(self.array).view(self.kept)


def read(thing: There) -> npt.NDArray[Any]:
    raise AssertionError("an array was copied to the host")


def tell(thing: There) -> DeviceArray:
    return described(thing if thing.strides is None else There(thing.player, thing.values().reshape(3, 2).T.copy()))


def empty(thing: There) -> There:
    return There(thing.player, np.zeros(thing.shape, thing.kept))


@pytest.fixture
def player(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShimDevice]:
    """The device, behind the name "cuda", and the library's row in the table of kinds."""
    device = ShimDevice()

    def cuda(number: int | None, threads: int | None, budget_bytes: int | None) -> CudaBackend:
        device.budget = budget_bytes or device.budget
        return CudaBackend(device, threads, PIECE)

    monkeypatch.setattr(devices, "_cuda", cuda)
    monkeypatch.setitem(
        array_libraries.ARRAY_LIBRARIES, __name__.partition(".")[0], ArrayLibrary(read, no_copy, tell, empty)
    )
    devices._warned.cache_clear()
    yield device
    devices._warned.cache_clear()


def no_copy(thing: There) -> Any:
    def give(values: npt.NDArray[Any]) -> Any:
        raise AssertionError("a result came from the host")

    return give


def models(count: int = 3) -> list[dict[str, npt.NDArray[Any]]]:
    rng = np.random.default_rng(3)
    return [
        {
            "w": rng.standard_normal((40, 50)).astype(np.float32),
            "h": rng.standard_normal(300).astype(np.float16),
            "b": rng.standard_normal(70).astype(ml_dtypes.bfloat16),
            "steps": np.array(rng.integers(0, 99)),
            "mask": rng.random(9) < 0.5,
        }
        for _ in range(count)
    ]


def moved(device: ShimDevice, model: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    return {name: There(device, values) for name, values in model.items()}


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        here = found[name].values() if isinstance(found[name], There) else found[name]
        assert (here.dtype, here.shape) == (values.dtype, values.shape)
        assert here.tobytes() == values.tobytes(), name


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize("form", [list, iter])
def test_updates_on_a_device_are_combined_and_given_back_there(player: ShimDevice, form: Any, accumulate: str) -> None:
    given = models()
    updates = [(moved(player, model), weight) for weight, model in enumerate(given, 1)]
    found = flcore.aggregate(form(updates), accumulate=accumulate)
    assert all(type(array) is There for array in found.values())
    plain = [(model, weight) for weight, model in enumerate(given, 1)]
    require_equal(found, flcore.aggregate(form(plain), accumulate=accumulate))


def test_a_base_and_a_place_for_the_result_may_be_there_too(player: ShimDevice) -> None:
    base, first, second = (({"w": model["w"]}) for model in models())
    out = moved(player, {"w": np.zeros((40, 50), np.float32)})
    updates = [(moved(player, first), 1.0), (moved(player, second), 0.5)]
    found = flcore.aggregate(updates, base=moved(player, base), out=out)
    assert found["w"] is out["w"]
    require_equal(found, flcore.aggregate([(first, 1.0), (second, 0.5)], base=base))


def test_nested_and_tied_arrays_come_back_nested_and_tied(player: ShimDevice) -> None:
    given = [There(player, np.full(300, value, np.float32)) for value in (1.0, 3.0)]
    updates = [({"net": {"in": each, "out": each}, "free": There(player, np.ones(2))}, 1) for each in given]
    found = flcore.aggregate(updates)
    assert found["net"]["in"] is found["net"]["out"] and type(found["free"]) is There
    assert found["net"]["in"].values().tolist() == [2.0] * 300


def test_some_tensors_may_be_in_memory(player: ShimDevice) -> None:
    given = models(2)
    updates = [({**model, "w": There(player, model["w"])}, 1) for model in given]
    found = flcore.aggregate(updates, backend="cuda")
    assert type(found["w"]) is There and all(type(found[name]) is np.ndarray for name in ("h", "b", "steps", "mask"))
    require_equal(found, flcore.aggregate([(model, 1) for model in given]))


def test_arrays_with_strides_are_made_flat_there(player: ShimDevice) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = flcore.aggregate([({"w": There(player, values, strides=(1, 2))}, 1)])
    assert found["w"].values().tolist() == values.reshape(3, 2).T.tolist()


@pytest.mark.parametrize("plan", ["batch", "streaming"])
def test_an_aggregator_may_be_told_to_work_there(player: ShimDevice, plan: str) -> None:
    given, results = models(), []
    for backend in ("cuda", "cpu"):
        aggregator = flcore.Aggregator(flcore.ModelSpec.of(given[0]), backend=backend, plan=plan)
        for weight, model in enumerate(given, 1):
            with aggregator.update(client=f"c{weight}", weight=weight) as update:
                for name, values in model.items():
                    update.write(name, values)
        results.append(aggregator.finish().arrays())
    assert player.launched
    require_equal(*results)


def test_what_is_refused_is_refused_by_name(player: ShimDevice) -> None:
    good = np.ones(300, np.float32)
    bad = good.copy()
    bad[123] = np.nan
    there = partial(There, player)
    for values, error, words in (
        (bad, flcore.NonFinite, "client 'update 1', tensor 'w': element 123 is nan"),
        (
            good[:200],
            flcore.TensorMismatch,
            r"tensor 'w': expected float32 of shape \(300,\), got float32 of shape \(200,\)",
        ),
        (good.astype(np.float16), flcore.TensorMismatch, "got float16"),
        (good.astype(np.complex64), flcore.SpecError, "update 1: tensor 'w': .*DLPack's kind 5"),
    ):
        told = there(values) if values.dtype.kind != "c" else there(np.ones(300, np.float32))
        if values.dtype.kind == "c":
            told.code, told.bits = 5, 64
        with pytest.raises(error, match=words):
            flcore.aggregate([({"w": there(good)}, 1), ({"w": told}, 1)])


def copied(thing: There) -> npt.NDArray[Any]:
    return thing.values()


def sent(thing: There) -> Any:
    return partial(There, thing.player)


def test_without_a_device_the_cpu_combines_after_one_warning(
    player: ShimDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise BackendUnavailable("there is no CUDA device")

    monkeypatch.setattr(devices, "_cuda", none)
    monkeypatch.setitem(
        array_libraries.ARRAY_LIBRARIES, __name__.partition(".")[0], ArrayLibrary(copied, sent, tell, empty)
    )
    given = models(2)
    updates = [(moved(player, model), 1) for model in given]
    with pytest.warns(RuntimeWarning, match="copied to the CPU and combined there: there is no CUDA device"):
        found = flcore.aggregate(updates)
    assert all(type(array) is There for array in found.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_equal(flcore.aggregate(iter(updates)), flcore.aggregate([(model, 1) for model in given]))
    with pytest.raises(BackendUnavailable):
        flcore.aggregate(updates, backend="cuda")


@pytest.mark.parametrize("form", [list, iter])
def test_without_memory_there_the_cpu_combines_too_unless_the_device_was_named(
    player: ShimDevice, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    def full(thing: There) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setitem(
        array_libraries.ARRAY_LIBRARIES, __name__.partition(".")[0], ArrayLibrary(copied, sent, tell, full)
    )
    given = models(2)
    updates = [(moved(player, model), 1) for model in given]
    with pytest.raises(OutOfDeviceMemory, match="no room for a result of 8,000 bytes: out of memory"):
        flcore.aggregate(form(updates), backend="cuda")
    with pytest.warns(RuntimeWarning, match="no room for a result"):
        found = flcore.aggregate(form(updates))
    require_equal(found, flcore.aggregate([(model, 1) for model in given]))


def test_a_sequence_is_combined_on_the_cpu_where_only_the_tables_do_not_fit(
    player: ShimDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        array_libraries.ARRAY_LIBRARIES,
        __name__.partition(".")[0],
        ArrayLibrary(copied, lambda _: np.asarray, tell, empty),
    )
    updates = [({"w": There(player, np.full(300, value, np.float32))}, 1) for value in (1.0, 3.0)]
    room = player.used + 1300
    with pytest.raises(OutOfDeviceMemory):
        flcore.aggregate(updates, backend="cuda", budget_bytes=room)
    with pytest.warns(RuntimeWarning, match="does not hold"):
        found = flcore.aggregate(updates, budget_bytes=room)
    assert found["w"].tolist() == [2.0] * 300


def test_a_budget_bounds_the_memory_there(player: ShimDevice) -> None:
    values = np.ones(100_000, np.float32)
    updates = [({"w": values}, 1)] * 9
    found = flcore.aggregate(iter(updates), backend="cuda", budget_bytes=3_000_000)
    assert found["w"].tolist() == values.tolist() and player.peak <= 3_000_000
    with pytest.raises(OutOfDeviceMemory):
        flcore.aggregate(iter(updates), backend="cuda", budget_bytes=1_000_000)


class Stranger(Exporter):
    """An array of a library that is not in the table."""

    __module__ = "stranger"


@pytest.fixture
def stranger(player: ShimDevice, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delitem(array_libraries.ARRAY_LIBRARIES, __name__.partition(".")[0])
    return lambda values, **told: Stranger(player.resident(values), **told)


def test_arrays_of_any_library_are_combined_there_and_come_back_in_memory(stranger: Any) -> None:
    found = flcore.aggregate([({"w": stranger(np.full(300, value, np.float32))}, 1) for value in (1.0, 3.0)])
    assert type(found["w"]) is np.ndarray and found["w"].tolist() == [2.0] * 300
    with pytest.raises(flcore.SpecError, match=r"expected a contiguous array .*, got a Stranger with strides"):
        flcore.aggregate([({"w": stranger(np.ones((2, 3), np.float32), strides=(1, 2))}, 1)])


def test_updates_on_several_devices_are_refused(stranger: Any) -> None:
    ones = np.ones(300, np.float32)
    with pytest.raises(flcore.AggregationError, match=r"it is on device 1, .* ask for backend\('cuda:1'\)"):
        flcore.aggregate([({"w": stranger(ones)}, 1), ({"w": stranger(ones, device=1)}, 1)])


def test_on_the_cpu_they_are_brought_by_cupy_if_that_is_there(stranger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = stranger(np.ones(300, np.float32))
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        flcore.SpecError, match=r"got Stranger \(it is on a CUDA device, .* which is not installed: install CuPy"
    ):
        flcore.aggregate([({"w": thing}, 1)], backend="cpu")
    cupy: Any = ModuleType("cupy")
    cupy.from_dlpack = lambda each: each
    cupy.asnumpy = lambda each: np.full(300, 7.0, np.float32)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert flcore.aggregate([({"w": thing}, 1)], backend="cpu")["w"].tolist() == [7.0] * 300


@pytest.mark.gpu
@pytest.mark.skipif(not has_device(), reason="there is no CUDA device")
@pytest.mark.parametrize("library", ["cupy", "torch"])
@pytest.mark.parametrize("form", [list, iter])
def test_real_arrays_on_a_real_device_stay_there(library: str, form: Any) -> None:
    pytest.importorskip(library)
    given = [{name: values for name, values in model.items() if name in ("w", "steps", "mask")} for model in models()]
    updates = [({name: put(library, values) for name, values in model.items()}, 1) for model in given]
    found = flcore.aggregate(form(updates))
    assert all(type(found[name]) is type(updates[0][0][name]) for name in found)
    require_equal(
        {name: as_array(array, name) for name, array in found.items()}, flcore.aggregate([(m, 1) for m in given])
    )


def put(library: str, values: npt.NDArray[Any]) -> Any:
    if library == "cupy":
        return __import__("cupy").asarray(values)
    return __import__("torch").from_numpy(np.array(values)).cuda()
