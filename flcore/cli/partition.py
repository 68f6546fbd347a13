"""`flcore partition`: divide a data set over clients, and show who has what."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from flcore.errors import PartitionError
from flcore.partition import dirichlet, dirichlet_balanced, label_counts, plot_partition, quantity_skew, shards

MAX_LABELS = 12
"""Columns of the table. Of more labels, it shows each client's number of different ones."""


def partition(
    labels: Annotated[Path, typer.Argument(help="A .npy file with one label per example.")],
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")],
    by_dirichlet: Annotated[
        float | None,
        typer.Option(
            "--dirichlet",
            metavar="ALPHA",
            help="Divide each label's examples in portions from Dir(ALPHA). (default: none)",
        ),
    ] = None,
    by_balanced: Annotated[
        float | None,
        typer.Option(
            "--dirichlet-balanced",
            metavar="ALPHA",
            help="Equal sizes, with each client's label distribution from Dir(ALPHA · shares). (default: none)",
        ),
    ] = None,
    by_shards: Annotated[
        int | None,
        typer.Option("--shards", metavar="N", help="Sort by label, and deal each client N shards. (default: none)"),
    ] = None,
    by_quantity: Annotated[
        float | None,
        typer.Option("--quantity", metavar="ALPHA", help="Sizes from Dir(ALPHA), labels alike. (default: none)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed. The same seed gives the same partition.")] = 0,
    min_size: Annotated[int, typer.Option(min=0, help="Least number of examples of a client.")] = 1,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the partition to a .png, .svg or .pdf. (default: no plot)")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write each client's indices to an .npz file: client-1, ... (default: no file)"
        ),
    ] = None,
) -> None:
    """Divide a data set over clients by its labels, and print who has what. Takes one of four kinds of partition."""
    kinds: list[tuple[str, Any, Callable[..., list[npt.NDArray[np.int64]]]]] = [
        ("--dirichlet", by_dirichlet, dirichlet),
        ("--dirichlet-balanced", by_balanced, dirichlet_balanced),
        ("--shards", by_shards, shards),
        ("--quantity", by_quantity, quantity_skew),
    ]
    given = [(name, partial(divide, clients=clients), value) for name, value, divide in kinds if value is not None]
    if len(given) != 1:
        raise typer.BadParameter(
            f"expected one of {', '.join(name for name, *_ in kinds)}, got "
            f"{' and '.join(name for name, *_ in given) or 'none'}"
        )
    if out is not None and out.suffix != ".npz":
        raise typer.BadParameter(f"expected a file that ends in .npz, got {out}", param_hint="--out")
    name, divide, value = given[0]
    loaded = _load(labels)
    parts = divide(loaded, **{"per_client" if name == "--shards" else "alpha": value}, seed=seed, min_size=min_size)
    names = [f"client-{number}" for number in range(1, clients + 1)]
    for line in _table(loaded, parts, names):
        print(line)
    if out is not None:
        np.savez(out, **dict(zip(names, parts, strict=True)))  # type: ignore[arg-type]  # its other keyword is a bool
        print(f"indices: {out}")
    if plot is not None:
        plot_partition(loaded, parts, plot, names=names)
        print(f"plot: {plot}")


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PartitionError(f"{path}: expected a .npy file of numbers or strings: {error}") from error
    if not isinstance(loaded, np.ndarray):
        raise PartitionError(f"{path}: expected a .npy file with one array, got an archive of several")
    return loaded


def _table(labels: npt.NDArray[Any], parts: list[npt.NDArray[np.int64]], names: list[str]) -> list[str]:
    values, counts = label_counts(labels, parts)
    if len(values) <= MAX_LABELS:
        heads, cells = [str(value) for value in values], counts
    else:
        heads, cells = ["labels"], (counts > 0).sum(axis=1, keepdims=True)
    rows = [["client", "examples", *heads]]
    rows += [[name, str(own.sum()), *map(str, row)] for name, own, row in zip(names, counts, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
