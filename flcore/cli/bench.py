"""`flcore bench`: benchmarks of this machine."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scale(StrEnum):
    """The size of the measurement."""

    SMALL = "small"
    FULL = "full"


class Device(StrEnum):
    """The device whose kernels are measured."""

    CPU = "cpu"
    CUDA = "cuda"


class Benchmark(StrEnum):
    """The benchmark to run."""

    KERNELS = "kernels"
    RULES = "rules"
    PEERS = "peers"
    TRANSPORT = "transport"
    ROUND = "round"
    PROCESSES = "processes"
    ROUND_PEERS = "round-peers"
    MEMORY = "memory"


def bench(
    what: Annotated[
        Benchmark,
        typer.Argument(
            help="kernels: aggregation, against the machine's limit and NumPy. rules: robust rules and their kernels, "
            "against the mean of the same clients and NumPy. transport: streams, against bare gRPC. "
            "round: whole rounds over loopback. processes: rounds of flcore server and flcore client, in plaintext and "
            "with TLS, with receipts for memory and for the disk, beside the disk alone. memory: the server's peak "
            "memory, against its bound. peers: aggregation, against PyTorch, NVFLARE, Flower and NumPy. round-peers: "
            "whole rounds, against NVFLARE and Flower. The last two need a source checkout (make bench-peers). Disk "
            "files go to TMPDIR."
        ),
    ],
    scale: Annotated[
        Scale,
        typer.Option(help="small: one or two minutes, 1 GB of memory. full: many minutes, 16 GB, and 50 GB of disk."),
    ] = Scale.SMALL,
    backend: Annotated[
        Device, typer.Option(help="The kernels to measure (kernels only). cuda needs a CUDA device and CuPy.")
    ] = Device.CPU,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of threads of flcore, PyTorch and the limit. (default: the available cores)"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file as JSON.")] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", help="Plot GB/s against the limit (kernels and peers only; needs matplotlib)."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Repeat all sides as often as this time allows, and at least once (processes only). "
            "(default: once, or three times with --scale full)",
        ),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="The interpreter of a peer's environment (torch, nvflare, flower, numpy). May be repeated. Default: "
            ".peers/NAME/bin/python, which `make bench-peers` installs, or else this interpreter.",
        ),
    ] = None,
) -> None:
    """Measure flcore on this machine, next to the machine's own limit, and print a table.

    At scale full, a row that is faster than its limit is an error: the limit was measured wrongly.
    """
    import flcore_bench

    if backend != Device.CPU and what != Benchmark.KERNELS:
        raise typer.BadParameter(f"expected cpu with {what}: only the kernels run on cuda", param_hint="--backend")
    if minutes is not None and what != Benchmark.PROCESSES:
        raise typer.BadParameter(f"expected no --minutes with {what}: processes alone takes it", param_hint="--minutes")
    pythons = _pythons(python or [], set(flcore_bench.PEERS))
    flcore_bench.run(
        what.value,
        scale.value,
        threads=threads,
        json_file=json_file,
        plot_file=plot_file,
        pythons=pythons,
        backend=backend.value,
        minutes=minutes,
    )


def _pythons(given: list[str], known: set[str]) -> dict[str, Path]:
    pythons = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in known or not path:
            names = ", ".join(sorted(known))
            raise typer.BadParameter(f"expected NAME=PATH with a NAME of {names}, got {pair!r}", param_hint="--python")
        pythons[name] = Path(path)
    return pythons
