"""`flcore run`: a whole job on this machine."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flcore.cli.addresses import listen_address
from flcore.cli.completion import job_names
from flcore.cli.history_plot import no_plot_reason, plot_history
from flcore.cli.interrupts import interrupt_line
from flcore.cli.log_options import LogFileOption, LogFormat, LogOptions, VerboseOption
from flcore.cli.progress import show_progress
from flcore.cli.run_table import comparison_table
from flcore.cli.web_page import LocalTokenOption, LocalWebOption, web_page
from flcore.event_log.log import log_events, write_to_stderr
from flcore.job.job import Job
from flcore.model.model_paths import require_directory
from flcore.model.stored_model import resolve_checkpoint
from flcore.server.events import Observer, notify_all
from flcore.server.results_file import RESULTS_FILE
from flcore.server.round_table import failure_lines
from flcore.server.serve import Outcome
from flcore.simulation.baselines import Baselines, compute_baselines
from flcore.simulation.run import run as run_job
from flcore.status.board import StatusBoard

if TYPE_CHECKING:  # it imports the extra `web`
    from flcore.web import Source

FILES = {
    "model": "model.safetensors",
    "best": "best.safetensors",
    "results": RESULTS_FILE,
    "history": "history.jsonl",
}
"""The files of a run that are listed at its end, if it has them."""


def run(
    job: Annotated[
        str,
        typer.Argument(
            help="A directory with job.toml, or the name of a bundled job (digits).", autocompletion=job_names
        ),
    ],
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
    log_format: Annotated[
        LogFormat | None,
        typer.Option(help="Log each event to standard error, in this format, in place of the progress line."),
    ] = None,
    log_file: LogFileOption = None,
    verbose: VerboseOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    web: LocalWebOption = None,
    web_token: LocalTokenOption = None,
) -> None:
    """Run a job on this machine: a server and all its clients, over gRPC on loopback.

    Writes the model, the history (one JSON line per round) and a plot, and prints a table.
    """
    loaded = Job.load(job, clients=clients, rounds=rounds, seed=seed)
    directory = require_directory(out) if out else Path("runs") / loaded.contract.name
    console = Console(stderr=True)
    # With --json and without a terminal, a program reads the result and nobody watches progress.
    is_seen = log_format is None and not verbose and (console.is_terminal or not as_json)
    board = StatusBoard.of(loaded.contract)
    with ExitStack() as stack:
        observers: list[Observer] = []
        if is_seen:
            observers.append(stack.enter_context(show_progress(loaded.contract, board, console)))
        is_logged = log_format is not None or verbose
        if is_logged or log_file is not None:
            options = LogOptions((log_format or LogFormat.TEXT).value, log_file, verbose)
            log = stack.enter_context(options.open(loaded.contract.name, write=write_to_stderr if is_logged else None))
            observers.append(log_events(log, loaded.contract))

        def source() -> "Source":
            from flcore.web import RunSource  # imports the extra `web`

            return RunSource(board, loaded.contract, directory)

        def say(text: str, _: str) -> None:
            console.print(text, highlight=False, soft_wrap=True, markup=False)

        address = None if web is None else listen_address(web, "--web")
        page = web_page(address, source, say, token_file=web_token)
        with _report_interrupt(directory, console), page:
            outcome = run_job(
                loaded, workers=workers, out=directory, fresh=fresh, observe=notify_all(*observers), board=board
            )
        baselines = compute_baselines(loaded)
    plot = plot_history(loaded.contract, outcome.history, baselines, directory / "history.png")
    if as_json:
        print(json.dumps(_as_json(loaded, outcome, baselines, directory)))
        return
    console = Console()
    console.print(comparison_table(loaded.contract, outcome.history, baselines))
    for line in failure_lines(outcome.history):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    is_there = {
        "best": any(record.is_best for record in outcome.history),
        "results": (directory / RESULTS_FILE).exists(),
    }
    for name, path in FILES.items():
        if is_there.get(name, True):
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
def _report_interrupt(directory: Path, console: Console) -> Iterator[None]:
    """After Ctrl-C, print the number of finished rounds and the directory."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(interrupt_line(directory), highlight=False, soft_wrap=True, markup=False)
        raise


def _as_json(job: Job, outcome: Outcome, baselines: Baselines | None, directory: Path) -> dict[str, Any]:
    return {
        "job": job.contract.name,
        "fingerprint": job.contract.fingerprint,
        "model": str(resolve_checkpoint(directory / "model.safetensors")),
        "history": [asdict(record) for record in outcome.history],
        "baselines": None if baselines is None else asdict(baselines),
    }
