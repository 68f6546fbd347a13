"""An array on a device is copied to the host at most once per use, and its spec is read from metadata.

The libraries are stand-ins for PyTorch, JAX and CuPy, as far as flcore uses them; their arrays count their copies.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import flcore
from flcore.aggregation.buffers import BufferReader
from flcore.aggregation.incremental import IncrementalAggregator
from flcore.client.cached_answer import prepare_answer
from flcore.client.executor import Executor
from flcore.model.model import NamedArrays

VALUES = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "mask": np.array([True, False])}
SPEC = flcore.ModelSpec.of(VALUES)


class OnDevice:
    """An array that is not in the host's memory."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values, self.shape, self.copies = values, values.shape, 0

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def copy(self) -> npt.NDArray[Any]:
        self.copies += 1
        return self.values.copy()


class TorchTensor(OnDevice):
    """PyTorch's, on a device that is not CUDA."""

    __module__ = "torch"
    device, layout = SimpleNamespace(type="mps"), "strided"

    @property
    def dtype(self) -> Any:
        return f"torch.{self.values.dtype.name}"

    def detach(self) -> "TorchTensor":
        return self

    resolve_conj = resolve_neg = detach

    def cpu(self) -> npt.NDArray[Any]:
        return self.copy()


class Accelerator:
    """A device of JAX's."""

    platform = "tpu"


class JaxArray(OnDevice):
    """JAX's, on an accelerator."""

    __module__ = "jaxlib"
    is_fully_addressable, sharding = True, None

    def devices(self) -> set[Any]:
        return {Accelerator()}

    def is_deleted(self) -> bool:
        return False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.copy()


class CupyArray(OnDevice):
    """CuPy's, on a CUDA device."""

    __module__ = "cupy"
    device = nullcontext()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        address = self.values.ctypes.data
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "version": 3}


FUNCTIONS: dict[str, dict[str, Any]] = {
    "torch": {
        "strided": "strided",
        "bfloat16": "torch.bfloat16",
        "from_numpy": lambda values: SimpleNamespace(to=lambda device: values),
    },
    "jax": {"device_put": lambda values, sharding: values},
    "cupy": {
        "asnumpy": OnDevice.copy,
        "asarray": lambda values: values,
        "ascontiguousarray": lambda array: array,
    },
}
CLASSES: dict[str, type[OnDevice]] = {"torch": TorchTensor, "jax": JaxArray, "cupy": CupyArray}


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[OnDevice]:
    """A class of arrays; its library is in place of the one that is installed, if any."""
    library = ModuleType(request.param)
    vars(library).update(FUNCTIONS[request.param])
    monkeypatch.setitem(sys.modules, request.param, library)
    return CLASSES[request.param]


def staged(model: dict[str, Any]) -> None:
    aggregator = flcore.Aggregator(SPEC, backend="cpu")
    with aggregator.update(client="a", weight=1) as update:
        update.write_all(model)
    require_values(aggregator.finish().arrays())


def sent(model: dict[str, Any]) -> None:
    """Do what a client does with the result of a task."""
    code = SimpleNamespace(train=lambda arrays, task: flcore.Update(model, weight=1))
    contract = SimpleNamespace(client=SimpleNamespace(executor="code"), tasks=["train"])
    job: Any = SimpleNamespace(contract=contract, load_reference=lambda *_: code)
    task: Any = SimpleNamespace(name="train", round=1, rounds=1)
    update = Executor(job, flcore.Site("a")).run({}, task)
    _, source = prepare_answer(update, "weights", SPEC)
    assert isinstance(source, NamedArrays)
    require_values({name: source.chunk(*place).reshape(VALUES[name].shape) for name, place in PLACES.items()})


def saved(model: dict[str, Any], folder: Path) -> None:
    flcore.save(model, folder / "m.safetensors")
    require_values(flcore.load(folder / "m.safetensors"))


def running(model: dict[str, Any]) -> None:
    mean = IncrementalAggregator(backend="cpu")
    mean.add(model, 1, "a")
    require_values(mean.finish())


def gathered(model: dict[str, Any]) -> None:
    """Read a model that is nested in part: it has as many names as tensors, but others."""
    nested = {"n": model["n"], "w": {"w": model["w"]}, "mask": model["mask"]}
    spec = flcore.ModelSpec.of({"n": VALUES["n"], "w.w": VALUES["w"], "mask": VALUES["mask"]})
    (n,), (w,), (mask,) = BufferReader(spec).buffers(nested, "a")
    require_values({"n": n, "w": w, "mask": mask})


USES: dict[str, Callable[..., None]] = {
    "Model.of": lambda model, _: require_values(flcore.Model.of(model).arrays()),
    "save": saved,
    "aggregate, a list": lambda model, _: require_values(flcore.aggregate([(model, 1)], backend="cpu")),
    "aggregate, an iterator": lambda model, _: require_values(flcore.aggregate(iter([(model, 1)]), backend="cpu")),
    "Running": lambda model, _: running(model),
    "Gather.buffers": lambda model, _: gathered(model),
    "Aggregator": lambda model, _: staged(model),
    "client": lambda model, _: sent(model),
}
PLACES = {
    span.tensor.name: (number, span.start, span.stop)
    for number, segment in enumerate(SPEC.segments)
    for span in segment.spans
}


def require_values(found: Any) -> None:
    assert sorted(found) == sorted(VALUES)
    for name, values in VALUES.items():
        assert np.array_equal(found[name].view(values.dtype), values), name


@pytest.mark.parametrize("use", USES)
def test_a_use_copies_each_array_once(kind: type[OnDevice], use: str, tmp_path: Path) -> None:
    model = {name: kind(values) for name, values in VALUES.items()}
    USES[use](model, tmp_path)
    assert {name: array.copies for name, array in model.items()} == dict.fromkeys(VALUES, 1)


def test_a_spec_is_read_without_a_copy(kind: type[OnDevice]) -> None:
    values = VALUES if kind is CupyArray else {**VALUES, "half": np.ones(3, ml_dtypes.bfloat16)}
    model = {name: kind(each) for name, each in values.items()}
    assert flcore.ModelSpec.of(model) == flcore.ModelSpec.of(values)
    with pytest.raises(flcore.TensorMismatch, match="tensor 'w': expected float32"):
        BufferReader(SPEC).buffers({**model, "w": kind(np.ones(3))}, "a")
    assert all(array.copies <= 1 for array in model.values())
    with pytest.raises(flcore.SpecError, match="tensor 'w': dtype complex64 is not supported"):
        flcore.ModelSpec.of({"w": kind(np.ones(3, np.complex64))})


def test_a_place_for_results_that_can_only_be_copied_is_copied_once_at_most(kind: type[OnDevice]) -> None:
    out = {name: kind(values) for name, values in VALUES.items()}
    with pytest.raises(flcore.TensorMismatch, match="tensor 'w': out: expected an array in memory"):
        flcore.aggregate([(VALUES, 1)], backend="cpu", out=out)
    assert all(array.copies <= 1 for array in out.values())
