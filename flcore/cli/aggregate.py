"""`flcore aggregate`: checkpoints in, one checkpoint out."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from flcore_layout import canonical_name
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from flcore.aggregation.budget import Budget
from flcore.aggregation.checkpoint_aggregation import aggregate_checkpoints
from flcore.errors import SpecError, WeightError
from flcore.job.rules import load_rule
from flcore.model.open_file import raise_file_limit
from flcore.model.shard_layout import total_bytes
from flcore.model.stored_model import count_files
from flcore.number_text import bytes_text
from flcore.process import keep_freed_memory
from flcore.text import counted, decode_text


def aggregate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...", help="safetensors files, indexes (*.safetensors.index.json) or directories."
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="PATH", help="NAME.safetensors, or a directory (any other name), for the result.")
    ],
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of a checkpoint; repeat once per checkpoint, in the same order. (default: 1)"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="CSV file with a line CHECKPOINT,WEIGHT for each checkpoint. (default: all weights 1)"
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(help="Aggregation rule: a name from `flcore rules`, such as trimmed_mean(f=2), or file.py:name."),
    ] = "mean",
    accumulate: Annotated[str, typer.Option(help="Accumulator of the sums: exact, float64 or float32.")] = "exact",
    dtype: Annotated[
        str | None, typer.Option(help="dtype of the result's floating-point tensors. (default: unchanged)")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Task arithmetic: the result is this checkpoint plus SCALE times the weighted differences."),
    ] = None,
    scale: Annotated[float, typer.Option(help="Factor for the differences from --base; may be negative.")] = 1.0,
    average_bytes: Annotated[
        bool,
        typer.Option(
            "--average-bytes", help="Average uint8 tensors. Without it they must be equal: they may be packed codes."
        ),
    ] = False,
    budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory limit for the data that is combined, such as 512MiB or 2GB.")
    ] = "1GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Combine checkpoints of one model into a new checkpoint. The result has the first checkpoint's shards."""
    keep_freed_memory()
    if weight and weights:
        raise typer.BadParameter("give either --weight for each checkpoint, or --weights", param_hint="--weight")
    if scale != 1.0 and base is None:
        raise typer.BadParameter(
            "it scales the differences from --base; give --base, or leave --scale out", param_hint="--scale"
        )
    if base is not None and (rule, accumulate) != ("mean", "exact"):
        raise typer.BadParameter("cannot be combined with --base; leave them out", param_hint="--rule, --accumulate")
    with _file_errors():
        given = read_weights(weights, checkpoints) if weights else weight or None
    if given is not None and len(given) != len(checkpoints):
        raise typer.BadParameter(
            f"expected {len(checkpoints)} weights, one per checkpoint, got {len(given)}", param_hint="--weight"
        )
    started = time.perf_counter()
    raise_file_limit(*count_files(checkpoints, base))
    with _progress(Console(stderr=True)) as on_progress, _file_errors():
        stored = aggregate_checkpoints(
            checkpoints,
            out,
            weights=given,
            rule=load_rule(rule, Path(), "--rule"),
            accumulate=accumulate,
            dtype=None if dtype is None else canonical_name(dtype),
            base=base,
            scale=scale,
            budget=Budget.parse(budget),
            average_bytes=average_bytes,
            on_progress=on_progress,
        )
    seconds = time.perf_counter() - started
    size = total_bytes(stored.spec)
    if as_json:
        report = {
            "files": [str(file) for file in stored.files],
            "checkpoints": len(checkpoints),
            "tensors": len(stored.spec.tensors),
            "parameters": stored.spec.parameters,
            "bytes": size,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(report))
        return
    shown = str(stored.files[0]) + (f" and {len(stored.files) - 1} more" if len(stored.files) > 1 else "")
    print(
        f"{shown}: {counted(len(checkpoints), 'checkpoint')}, {counted(len(stored.spec.tensors), 'tensor')}, "
        f"{stored.spec.parameters:,} parameters, {bytes_text(size)} in {seconds:.1f} s"
    )


def read_weights(path: Path, checkpoints: list[str]) -> list[float]:
    """Return the checkpoints' weights from a CSV file, or raise `WeightError`, naming the line.

    A line has a checkpoint, spelled as on the command line, and its weight. A header `checkpoint,weight` is optional.
    """
    found: dict[str, float] = {}
    for number, row in enumerate(_rows(path), 1):
        if not row or (number == 1 and row == ["checkpoint", "weight"]):
            continue
        try:
            name, value = row
            weight = float(value)
        except ValueError:
            raise WeightError(f"{path}, line {number}: expected CHECKPOINT,WEIGHT, got {','.join(row)!r}") from None
        if name not in checkpoints or name in found:
            problem = "appears twice" if name in found else "is not among the given checkpoints"
            raise WeightError(f"{path}, line {number}: {name!r} {problem}")
        found[name] = weight
    missing = [name for name in checkpoints if name not in found]
    if missing:
        raise WeightError(f"{path} has no weight for {missing[0]!r}")
    return [found[name] for name in checkpoints]


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(io.StringIO(decode_text(path.read_bytes()), newline=""))
    except (ValueError, csv.Error) as error:
        raise WeightError(f"{path}: expected a CSV file: {error}") from error


@contextmanager
def _file_errors() -> Iterator[None]:
    """Map missing files and full disks to errors of one line."""
    try:
        yield
    except OSError as error:
        raise SpecError(f"{error.filename or 'a file'}: {error.strerror}") from error


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show progress, MB/s and time left while the block lasts, on a terminal only."""
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (
        TextColumn("aggregating"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("aggregating", total=None)
        yield lambda done, whole: progress.update(line, completed=done, total=whole)
