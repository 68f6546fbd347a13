"""A measurement in a process of its own: fresh memory, an environment without settings, perhaps another interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flcore import FlcoreError

SETTINGS_OF_OTHERS = ("OPENBLAS_", "GOTO_", "MKL_", "OMP_", "BLIS_", "NUMBA_")


class MeasurementFailed(FlcoreError):
    """A process that measured did not come to its end."""


def answer_of(
    module: str,
    *arguments: str,
    threads: int,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Run `module`'s `main` in a new process, and return the JSON that it prints last."""
    program = f"from {module} import main; main()"
    command = [str(python or sys.executable), "-c", program, *arguments, str(threads)]
    settings = measuring_environment(threads) | dict(environment or {})
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=settings)  # noqa: S603 - our own program
    except OSError as error:
        raise MeasurementFailed(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise MeasurementFailed(
            f"{module} {' '.join(arguments)} in {command[0]} ended with code {error.returncode}; it said why above"
        ) from error
    return json.loads(done.stdout.splitlines()[-1])


def measuring_environment(threads: int) -> dict[str, str]:
    """Return this process's environment for one that measures: flcore's threads set, others' settings taken out.

    A machine that is set up to keep a BLAS to one thread would make a baseline look worse than it is.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_OF_OTHERS)}
    return kept | {"FLCORE_THREADS": str(threads)}
