"""`flcore bench`: what this machine can do."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scale(StrEnum):
    """How large the measurement is."""

    SMALL = "small"
    FULL = "full"


class What(StrEnum):
    """What is measured."""

    KERNELS = "kernels"
    ROUND = "round"


def bench(
    what: Annotated[What, typer.Argument(help="The fold in memory, or whole rounds over loopback.")],
    scale: Annotated[Scale, typer.Option(help="small takes seconds, full needs 2 GB of memory.")] = Scale.SMALL,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure flcore on this machine, next to the machine's own limit."""
    import flcore_bench

    flcore_bench.run(what.value, scale.value, json_file)
