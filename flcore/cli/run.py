"""`flcore run`: a whole job on this machine."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flcore.cli.plot import no_plot_reason, plot_history
from flcore.cli.progress import show_progress
from flcore.cli.report import comparison_table, failure_lines
from flcore.job.job import Job
from flcore.model.model_paths import require_directory
from flcore.model.stored_model import resolve_checkpoint
from flcore.server.events import ignore_events
from flcore.server.run_directory import HISTORY_FILE
from flcore.server.serve import Outcome
from flcore.simulation.baselines import Baselines, compute_baselines
from flcore.simulation.run import run as run_job

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def run(
    job: Annotated[str, typer.Argument(help="A directory with job.toml, or the name of a bundled job (digits).")],
    clients: Annotated[int | None, typer.Option(min=1, help="Number of clients. (default: the job's)")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of processes that host the clients; 0 hosts them in threads of this process. "
            "(default: one per client, at most 8)",
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds. (default: the job's)")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the job. (default: the job's)")] = None,
    out: Annotated[Path | None, typer.Option(help="Output directory; created if missing. (default: runs/NAME)")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rename an earlier run in that directory to NAME.1, and start a new one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a job on this machine: a server and all its clients, over gRPC on loopback.

    Writes the model, the history (one JSON line per round) and a plot, and prints a table.
    """
    loaded = Job.load(job, clients=clients, rounds=rounds, seed=seed)
    directory = require_directory(out) if out else Path("runs") / loaded.contract.name
    console = Console(stderr=True)
    # With --json and without a terminal, a program reads the result and nobody watches progress.
    is_seen = console.is_terminal or not as_json
    with show_progress(loaded.contract, console) if is_seen else nullcontext(ignore_events) as observe:
        with _name_directory_in_errors(directory), _report_interrupt(directory, console):
            outcome = run_job(loaded, workers=workers, out=directory, fresh=fresh, observe=observe)
        baselines = compute_baselines(loaded)
    plot = plot_history(loaded.contract, outcome.history, baselines, directory / "history.png")
    if as_json:
        print(json.dumps(_as_json(loaded, outcome, baselines, directory)))
        return
    console = Console()
    console.print(comparison_table(loaded.contract, outcome.history, baselines))
    for line in failure_lines(outcome.history):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for name, path in (("model", "model.safetensors"), ("best", "best.safetensors"), ("history", "history.jsonl")):
        if any(record.is_best for record in outcome.history) or name != "best":
            console.print(
                f"{name:<8} {resolve_checkpoint(directory / path)}", highlight=False, soft_wrap=True, markup=False
            )
    console.print(
        f"plot     {plot or no_plot_reason(loaded.contract, outcome.history)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@contextmanager
def _name_directory_in_errors(directory: Path) -> Iterator[None]:
    """Add the directory to disk errors that name no file, such as those of writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK_ERRORS:
            raise OSError(error.errno, error.strerror, str(directory)) from error
        raise


@contextmanager
def _report_interrupt(directory: Path, console: Console) -> Iterator[None]:
    """After Ctrl-C, print the number of finished rounds and the directory."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):
            count = (directory / HISTORY_FILE).read_bytes().count(b"\n")
            left = f"interrupted after {count} rounds; the last model and the history are in {directory}"
            console.print(
                left if count else "interrupted in the first round", highlight=False, soft_wrap=True, markup=False
            )
        raise


def _as_json(job: Job, outcome: Outcome, baselines: Baselines | None, directory: Path) -> dict[str, Any]:
    return {
        "job": job.contract.name,
        "fingerprint": job.contract.fingerprint,
        "model": str(resolve_checkpoint(directory / "model.safetensors")),
        "history": [asdict(record) for record in outcome.history],
        "baselines": None if baselines is None else asdict(baselines),
    }
