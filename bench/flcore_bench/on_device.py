"""`flcore bench kernels --backend cuda`: the kernels on a device, beside how fast that copies.

What is on the device is compared with a copy from one place of its memory to another, byte for byte read and written;
what comes from the host's memory with the slower of a copy from page-locked memory and a copy within the host's.
"""

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import numpy.typing as npt
from flcore_kernels import Backend, Quantized, backend, bytes_per_element

from flcore_bench.child import answer_of
from flcore_bench.clients import BLOCK, CLIENTS, encoded, make_clients, make_weights, touched
from flcore_bench.row import Goal, Row, ratio
from flcore_bench.setup import Setup, count_of
from flcore_bench.timing import Work, interleaved

FOLDS = {
    ("float32", "float32"): 0.85,
    ("bfloat16", "float32"): 0.85,
    (f"int8[{BLOCK}]", "float32"): 0.85,
    ("float32", "exact"): 0.6,
    ("bfloat16", "exact"): 0.6,
}
"""What is folded into what, and the share of the device's copy rate that it is to reach."""

FROM_HOST, OVER_TORCH = 0.85, 2.0

Array = npt.NDArray[Any]
Peer = Callable[[list[Any], list[float]], Work]


class Card(Protocol):
    """A device that is measured: what it is called, memory of it, and its copies, which are done when they return."""

    name: str

    def put(self, array: Array) -> Any:
        """Return a copy of an array in the device's memory."""
        ...

    def copy(self, nbytes: int) -> Work:
        """Return a copy of so many bytes within the device's memory."""
        ...

    def upload(self, nbytes: int) -> Work:
        """Return a copy of so many page-locked bytes to the device's memory."""
        ...


def device_rows(setup: Setup, device: Backend, card: Card, peer: Peer | None = None) -> list[Row]:
    """Measure folds of what is there, the mean in one pass, beside `peer`, and a fold of what comes from the host."""
    models, weights = make_clients(CLIENTS, setup.elements), make_weights(CLIENTS)
    rows = [_fold_row(setup, device, card, models, weights, *fold, goal) for fold, goal in FOLDS.items()]
    rows.append(_mean_row(setup, device, card, models, weights, peer))
    return [*rows, _host_row(setup, device, card, models, weights)]


def _fold_row(
    setup: Setup,
    device: Backend,
    card: Card,
    models: list[Array],
    weights: list[float],
    dtype: str,
    accumulate: str,
    goal: float,
) -> Row:
    parts = [_there(card, part) for part in encoded(models, dtype)]
    size = sum(_nbytes(part) for part in encoded(models, dtype))
    total = device.total(setup.elements, accumulate)

    def fold() -> None:
        total.clear()
        device.fold(total, parts, weights, dtype)

    moved = size + int(2 * bytes_per_element(accumulate) * setup.elements)
    taken = interleaved({"own": fold, "copy": card.copy(moved // 2)}, setup.rounds)
    share = ratio(taken["copy"], taken["own"])
    return Row(
        f"kernel fold on the device, {dtype} into {accumulate}, {CLIENTS} x {count_of(setup.elements)}",
        taken["own"],
        size,
        goals=[Goal("of the device's copy rate", share, goal, unit="")],
        note=f"{card.name}; a copy there moves {_rate(moved, taken['copy'])}",
        series=f"flcore {dtype} into {accumulate}, on the device",
    )


def _mean_row(
    setup: Setup, device: Backend, card: Card, models: list[Array], weights: list[float], peer: Peer | None
) -> Row:
    parts, out = [card.put(model) for model in models], card.put(touched(setup.elements))
    size = sum(model.nbytes for model in models)
    cases: dict[str, Work] = {
        "own": lambda: device.mean(parts, weights, out, "float32", "float32"),
        "copy": card.copy((size + models[0].nbytes) // 2),
    }
    if peer is not None:
        cases["torch"] = peer(parts, weights)
    taken = interleaved(cases, setup.rounds)
    times = {} if peer is None else {"PyTorch _foreach_add_": ratio(taken["torch"], taken["own"])}
    return Row(
        f"kernel mean on the device, float32, float32 sums, {CLIENTS} x {count_of(setup.elements)}",
        taken["own"],
        size,
        against=times,
        goals=[
            Goal("of the device's copy rate", ratio(taken["copy"], taken["own"]), 0.85, unit=""),
            *(Goal(what, value, OVER_TORCH) for what, value in times.items()),
        ],
        note=card.name if times else f"{card.name}; PyTorch with CUDA is not installed here",
        series="flcore float32 mean, on the device",
    )


def _host_row(setup: Setup, device: Backend, card: Card, models: list[Array], weights: list[float]) -> Row:
    size = sum(model.nbytes for model in models)
    total, target = device.total(setup.elements, "float32"), [touched(setup.elements) for _ in models]
    copied = backend("cpu", threads=setup.threads)

    def fold() -> None:
        total.clear()
        device.fold(total, models, weights, "float32")

    def copy() -> None:  # a mean of one part writes what it reads, on the threads that copy pieces
        for model, place in zip(models, target, strict=True):
            copied.mean([model], [1.0], place, "float32", "float32")

    taken = interleaved({"own": fold, "pinned": card.upload(size), "host": copy}, setup.rounds)
    slower = max(("pinned", "host"), key=lambda name: median(taken[name]))
    return Row(
        f"kernel fold from host memory, float32 into float32, {CLIENTS} x {count_of(setup.elements)}",
        taken["own"],
        size,
        goals=[Goal("of the slower copy's rate", ratio(taken[slower], taken["own"]), FROM_HOST, unit="")],
        note=f"{card.name}; page-locked to device {_rate(size, taken['pinned'])}, host to host "
        f"{_rate(size, taken['host'])}",
        series="flcore float32 into float32, from host memory",
    )


def _there(card: Card, part: Any) -> Any:
    return Quantized(card.put(part.codes), card.put(part.scales)) if isinstance(part, Quantized) else card.put(part)


def _nbytes(part: Any) -> int:
    return int(part.codes.nbytes + part.scales.nbytes if isinstance(part, Quantized) else part.nbytes)


def _rate(nbytes: int, seconds: list[float]) -> str:
    return f"{nbytes / median(seconds) / 1e9:,.1f} GB/s"


def cuda_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a process of its own; raises `flcore_kernels.BackendUnavailable` where there is no device."""
    backend("cuda")
    return [Row.from_json(row) for row in answer_of("flcore_bench.on_device", scale, threads=threads)]


def main() -> None:
    """Be that process: measure on the device, and print the rows as JSON."""
    from flcore_bench.cuda_card import CupyCard

    setup = Setup.of(sys.argv[1], int(sys.argv[2]))
    rows = device_rows(setup, backend("cuda", setup.threads), CupyCard(), _peer())
    print(json.dumps([row.to_json() for row in rows]))


def _peer() -> Peer | None:
    try:
        from flcore_bench.peers.pytorch_cuda import foreach_add
    except ImportError:
        return None
    return foreach_add
