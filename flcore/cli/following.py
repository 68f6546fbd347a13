"""Ctrl-C during a command of a lead: what becomes of the job, and how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager

from flcore.cli.federation_options import say


@contextmanager
def explain_interrupt(line: str) -> Iterator[None]:
    """Write a line when Ctrl-C ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        say(line)
        raise


def goes_on(job_id: str) -> str:
    """Return the line on a job that goes on when a command has stopped to follow it."""
    return f"{job_id}: goes on; follow it with `flcore logs {job_id} --follow`, or end it with `flcore abort {job_id}`"
