"""Saying what is being measured, to a person who waits for it and to nobody else."""

import sys


def measuring(what: str) -> None:
    """Say it on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"measuring: {what}", file=sys.stderr, flush=True)
