"""`flcore job check` and `flcore rules`: read-only commands."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flcore.cli.completion import job_names
from flcore.client.executor import require_tasks
from flcore.job.contract import Contract
from flcore.job.job import PACK_SUFFIX, Job
from flcore.job.pack import open_pack
from flcore.number_text import bytes_text
from flcore.rules.named import OPTIMIZERS, RULES, STAGES, factory_of
from flcore.text import counted, printable
from flcore.workflows.bundled import load_workflow


def check(
    path: Annotated[
        str,
        typer.Argument(
            help="A directory with job.toml, the name of a bundled job, or a pack.", autocompletion=job_names
        ),
    ],
) -> None:
    """Validate a job and print a summary: reads its contract, loads its code, creates its first model.

    Of a pack, the code is not run: the command checks each file, and prints what is in the pack and who has signed it.
    """
    if path.endswith(PACK_SUFFIX) and Path(path).is_file():
        _check_pack(Path(path))
        return
    job = Job.load(path)
    load_workflow(job)
    job.load_rule()
    require_tasks(job)
    if job.contract.baselines is not None:
        job.load_reference("baselines", job.contract.baselines)
    spec = job.initial_model().spec
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in _describe(job.contract):
        console.print(line)
    size = f"{counted(len(spec.tensors), 'tensor')}, {spec.parameters:,} parameters, {bytes_text(spec.nbytes)}"
    console.print(f"model        {size}")
    console.print(f"fingerprint  {job.contract.fingerprint}")
    console.print(f"code         {job.code_digest}")
    console.print("The job is sound.")


def _check_pack(path: Path) -> None:
    pack = open_pack(path)
    for line in _describe(pack.contract):
        print(printable(line))
    for file in pack.manifest.files:
        print(f"file         {file.name}, {file.nbytes:,} bytes")
    print(f"fingerprint  {pack.contract.fingerprint}")
    print(f"code         {pack.manifest.code_digest}")
    print(f"pack         {pack.digest}, {pack.nbytes:,} bytes")
    signature = pack.signature
    signer = "nobody" if signature is None else f"the key {signature.public_key}, as {signature.signer}"
    print(f"signed by    {signer}")
    print("The pack is sound.")


def rules(name: Annotated[str | None, typer.Argument(help="Name of one rule.")] = None) -> None:
    """List aggregation rules, stages and server optimizers, or describe one. A custom rule is named file.py:name."""
    if name is not None:
        print(f"{name}: {inspect.getdoc(factory_of(name.partition('(')[0]))}")
        return
    _print_factories("Rules:", RULES)
    _print_factories("Stages, before a rule (nnm(f=2) + trimmed_mean(f=2)):", STAGES)
    _print_factories("Server optimizers, behind a rule (mean + fed_adam(lr=0.01)):", OPTIMIZERS)
    print("A custom rule is named file.py:name (docs/rules.md).")


def _print_factories(title: str, factories: Mapping[str, Callable[..., object]]) -> None:
    print(title)
    for known, factory in factories.items():
        print(f"  {known:<16}  {(inspect.getdoc(factory) or '').partition(chr(10))[0]}")


def _describe(contract: Contract) -> list[str]:
    server = contract.server
    names = contract.client_names
    who = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    closing = f", with {server.close_at} answers" if server.close_at else ""
    tasks = [f"task         {name} returns {task.returns}" for name, task in contract.tasks.items()]
    return [
        f"job          {contract.name}, seed {contract.seed}",
        f"clients      {who}",
        f"server       {server.workflow}, {server.rounds} rounds, rule {server.rule}, fraction {server.fraction:g}",
        f"an attempt   closes after {server.deadline_s:g} s{closing} or when all have answered",
        f"a round      counts with {server.quorum} updates",
        *tasks,
    ]
