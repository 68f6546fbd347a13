"""`flcore new`: a job to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from flcore.cli.completion import template_names
from flcore.templates import TEMPLATES, missing_packages, write_job


def new(
    path: Annotated[
        Path, typer.Argument(metavar="NAME", help="The job's name, or a path that ends in it; nothing may be there.")
    ],
    template: Annotated[
        str,
        typer.Option(help=f"What the job trains with: {', '.join(TEMPLATES)}.", autocompletion=template_names),
    ] = "numpy",
) -> None:
    """Write a new job that runs at once: a contract, its code and a README.

    The job trains on synthetic or bundled data. One commented place in its code is for your own.
    """
    for name in write_job(path, template):
        print(path / name)
    if missing := missing_packages(template):
        print(f"needs: pip install {' '.join(missing)}")
    print(f"next: flcore run {path}")
