"""`flcore bench kernels --backend cuda`: the kernels on a device, next to its copy rate.

Kernels on device memory are compared with a device-to-device copy of as many bytes. Kernels on host memory are compared
with the slower of two copies: from page-locked memory to the device, and within host memory.
"""

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import numpy.typing as npt
from flcore_kernels import Backend, Quantized, backend, bytes_per_element

from flcore_bench.process import run_in_process
from flcore_bench.report import Goal, Row, ratio
from flcore_bench.timing import Work, interleaved
from flcore_bench.workload import (
    BLOCK,
    CLIENTS,
    Sizes,
    encode_models,
    format_count,
    make_clients,
    make_weights,
    prefaulted,
)

FOLDS = {
    ("float32", "float32"): 0.85,
    ("bfloat16", "float32"): 0.85,
    (f"int8[{BLOCK}]", "float32"): 0.85,
    ("float32", "exact"): 0.6,
    ("bfloat16", "exact"): 0.6,
}
"""Wire dtype and accumulator of each fold, and its goal: a share of the device's copy rate."""

FROM_HOST, OVER_TORCH = 0.85, 2.0
"""Goals: of a fold from host memory, the share of the slower copy's rate; of the mean, the speed over PyTorch's."""

Array = npt.NDArray[Any]
Peer = Callable[[list[Any], list[float]], Work]


class DeviceMemory(Protocol):
    """A measured device: its name, its memory, and synchronous copies."""

    name: str

    def put(self, array: Array) -> Any:
        """Return a copy of an array in the device's memory."""
        ...

    def copy(self, nbytes: int) -> Work:
        """Return the call that copies `nbytes` bytes within the device's memory."""
        ...

    def upload(self, nbytes: int) -> Work:
        """Return the call that copies `nbytes` page-locked bytes to the device's memory."""
        ...


def device_rows(sizes: Sizes, device: Backend, memory: DeviceMemory, peer: Peer | None = None) -> list[Row]:
    """Measure folds on the device, the fused mean next to `peer`, and a fold from host memory."""
    models, weights = make_clients(CLIENTS, sizes.elements), make_weights(CLIENTS)
    rows = [_fold_row(sizes, device, memory, models, weights, *fold, goal) for fold, goal in FOLDS.items()]
    rows.append(_mean_row(sizes, device, memory, models, weights, peer))
    return [*rows, _host_row(sizes, device, memory, models, weights)]


def _fold_row(
    sizes: Sizes,
    device: Backend,
    memory: DeviceMemory,
    models: list[Array],
    weights: list[float],
    dtype: str,
    accumulate: str,
    goal: float,
) -> Row:
    parts = [_on_device(memory, part) for part in encode_models(models, dtype)]
    size = sum(_nbytes(part) for part in encode_models(models, dtype))
    total = device.total(sizes.elements, accumulate)

    def fold() -> None:
        total.clear()
        device.fold(total, parts, weights, dtype)

    moved = size + int(2 * bytes_per_element(accumulate) * sizes.elements)
    taken = interleaved({"own": fold, "copy": memory.copy(moved // 2)}, sizes.rounds)
    share = ratio(taken["copy"], taken["own"])
    return Row(
        f"kernel fold on the device, {dtype} into {accumulate}, {CLIENTS} x {format_count(sizes.elements)}",
        taken["own"],
        size,
        goals=[Goal("of the device's copy rate", share, goal, unit="")],
        note=f"{memory.name}; a copy there moves {_rate(moved, taken['copy'])}",
        series=f"flcore {dtype} into {accumulate}, on the device",
    )


def _mean_row(
    sizes: Sizes, device: Backend, memory: DeviceMemory, models: list[Array], weights: list[float], peer: Peer | None
) -> Row:
    parts, out = [memory.put(model) for model in models], memory.put(prefaulted(sizes.elements))
    size = sum(model.nbytes for model in models)
    cases: dict[str, Work] = {
        "own": lambda: device.mean(parts, weights, out, "float32", "float32"),
        "copy": memory.copy((size + models[0].nbytes) // 2),
    }
    if peer is not None:
        cases["torch"] = peer(parts, weights)
    taken = interleaved(cases, sizes.rounds)
    times = {} if peer is None else {"PyTorch _foreach_add_": ratio(taken["torch"], taken["own"])}
    return Row(
        f"kernel mean on the device, float32, float32 sums, {CLIENTS} x {format_count(sizes.elements)}",
        taken["own"],
        size,
        against=times,
        goals=[
            Goal("of the device's copy rate", ratio(taken["copy"], taken["own"]), 0.85, unit=""),
            *(Goal(what, value, OVER_TORCH) for what, value in times.items()),
        ],
        note=memory.name if times else f"{memory.name}; PyTorch with CUDA is not installed here",
        series="flcore float32 mean, on the device",
    )


def _host_row(sizes: Sizes, device: Backend, memory: DeviceMemory, models: list[Array], weights: list[float]) -> Row:
    size = sum(model.nbytes for model in models)
    total, target = device.total(sizes.elements, "float32"), [prefaulted(sizes.elements) for _ in models]
    cpu = backend("cpu", threads=sizes.threads)

    def fold() -> None:
        total.clear()
        device.fold(total, models, weights, "float32")

    def copy() -> None:  # a mean of one part copies it, on the kernels' threads
        for model, place in zip(models, target, strict=True):
            cpu.mean([model], [1.0], place, "float32", "float32")

    taken = interleaved({"own": fold, "pinned": memory.upload(size), "host": copy}, sizes.rounds)
    slower = max(("pinned", "host"), key=lambda name: median(taken[name]))
    return Row(
        f"kernel fold from host memory, float32 into float32, {CLIENTS} x {format_count(sizes.elements)}",
        taken["own"],
        size,
        goals=[Goal("of the slower copy's rate", ratio(taken[slower], taken["own"]), FROM_HOST, unit="")],
        note=f"{memory.name}; page-locked to device {_rate(size, taken['pinned'])}, host to host "
        f"{_rate(size, taken['host'])}",
        series="flcore float32 into float32, from host memory",
    )


def _on_device(memory: DeviceMemory, part: Any) -> Any:
    return (
        Quantized(memory.put(part.codes), memory.put(part.scales)) if isinstance(part, Quantized) else memory.put(part)
    )


def _nbytes(part: Any) -> int:
    return int(part.codes.nbytes + part.scales.nbytes if isinstance(part, Quantized) else part.nbytes)


def _rate(nbytes: int, seconds: list[float]) -> str:
    return f"{nbytes / median(seconds) / 1e9:,.1f} GB/s"


def cuda_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a new process. Raises `flcore_kernels.BackendUnavailable` where there is no device."""
    backend("cuda")
    return [Row.from_json(row) for row in run_in_process("flcore_bench.cuda_kernels", scale, threads=threads)]


def main() -> None:
    """In that process: measure on the device, and print the rows as JSON."""
    from flcore_bench.cuda_memory import CupyMemory

    sizes = Sizes.of(sys.argv[1], int(sys.argv[2]))
    rows = device_rows(sizes, backend("cuda", sizes.threads), CupyMemory(), _peer())
    print(json.dumps([row.to_json() for row in rows]))


def _peer() -> Peer | None:
    try:
        from flcore_bench.pytorch_cuda import foreach_add
    except ImportError:
        return None
    return foreach_add
