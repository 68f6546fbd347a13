"""`flcore bench`: what this machine can do."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scale(StrEnum):
    """How large the measurement is."""

    SMALL = "small"
    FULL = "full"


class Device(StrEnum):
    """Whose kernels are measured."""

    CPU = "cpu"
    CUDA = "cuda"


class What(StrEnum):
    """What is measured."""

    KERNELS = "kernels"
    PEERS = "peers"
    TRANSPORT = "transport"
    ROUND = "round"
    ROUND_PEERS = "round-peers"
    MEMORY = "memory"


def bench(
    what: Annotated[
        What,
        typer.Argument(
            help="kernels: the arithmetic, against the machine's limit and NumPy. peers: against PyTorch, NVFLARE, "
            "Flower and NumPy, each in its own environment. transport: streams of pieces, against bare gRPC. round: "
            "whole rounds over loopback. round-peers: beside those of NVFLARE and Flower. memory: the server's peak, "
            "against what it may take. Rounds on disk go to where TMPDIR says."
        ),
    ],
    scale: Annotated[
        Scale,
        typer.Option(help="small: a minute or two and 1 GB of memory. full: many minutes, 16 GB, and 50 GB of disk."),
    ] = Scale.SMALL,
    backend: Annotated[
        Device, typer.Option(help="Whose kernels are measured (kernels only): cuda needs a device, and CuPy.")
    ] = Device.CPU,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of flcore, PyTorch and the limit (default: the cores available).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw GB/s against the limit (kernels, peers; needs matplotlib).")
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="The interpreter of a peer's environment (torch, nvflare, flower, numpy); may be repeated. Default: "
            ".peers/NAME/bin/python, as `make bench-peers` makes it, or else this one.",
        ),
    ] = None,
) -> None:
    """Measure flcore on this machine, next to the machine's own limit, and print one table.

    Ends with an error if anything beats its limit: then the limit was measured badly, and no ratio to it holds.
    """
    import flcore_bench

    if backend != Device.CPU and what != What.KERNELS:
        raise typer.BadParameter(f"only kernels are measured on a device, not {what}", param_hint="--backend")
    pythons = _pythons(python or [], set(flcore_bench.PEERS))
    flcore_bench.run(
        what.value,
        scale.value,
        threads=threads,
        json_file=json_file,
        plot_file=plot_file,
        pythons=pythons,
        backend=backend.value,
    )


def _pythons(given: list[str], known: set[str]) -> dict[str, Path]:
    pythons = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in known or not path:
            names = ", ".join(sorted(known))
            raise typer.BadParameter(f"expected NAME=PATH with a NAME of {names}, not {pair!r}", param_hint="--python")
        pythons[name] = Path(path)
    return pythons
