"""`flcore warm`: compile kernels ahead of use."""

import time
from typing import Annotated

import typer
from flcore_layout import canonical_name
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def warm(
    dtypes: Annotated[
        list[str] | None,
        typer.Option("--dtype", help="dtype to compile for; repeatable. 'all' takes every dtype."),
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules", help="Also compile the kernels of robust rules and server optimizers.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of processes that compile. (default: FLCORE_THREADS, or else the available cores)"
        ),
    ] = None,
) -> None:
    """Compile kernels ahead of use, for this processor, and cache them on disk.

    Takes a minute or two, and some minutes more with --rules.
    Without --dtype: float32, bfloat16, float16, float64, int64 and int8 in blocks of 256. FLCORE_CACHE_DIR sets the
    cache directory (default: ~/.cache/flcore).
    """
    from flcore_kernels import warm as warm_kernels

    names = dtypes and [each if each == "all" else canonical_name(each) for each in dtypes]
    console = Console(stderr=True)
    started = time.monotonic()
    compiled = total = 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("compiling", total=None)
        for done, total, key, was_needed in warm_kernels(names, processes, rules=rules):
            compiled += was_needed
            progress.update(bar, completed=done, total=total, description=" ".join(key))
    typer.echo(f"{total} kernels ready, {compiled} of them compiled now, in {time.monotonic() - started:.0f} s")
