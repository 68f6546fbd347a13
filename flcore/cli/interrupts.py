"""What a command says when Ctrl-C or SIGTERM ends it: how far the run came, and where its files are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flcore.event_log.log import Log
from flcore.server.run_directory import HISTORY_FILE
from flcore.text import counted


def interrupt_line(directory: Path, cause: str = "") -> str:
    """Return the line on a run that was interrupted: its finished rounds, and its directory."""
    try:
        count = (directory / HISTORY_FILE).read_bytes().count(b"\n")
    except OSError:  # a run without a result removes its history
        count = 0
    rounds = counted(count, "round")
    where = f"after {rounds}; the last model and the history are in {directory}" if count else "in the first round"
    return f"interrupted {cause}{where}"


@contextmanager
def log_interrupt(log: Log, directory: Path) -> Iterator[None]:
    """Log one line when Ctrl-C or SIGTERM ends the block."""
    try:
        yield
    except KeyboardInterrupt:
        log.write_line(interrupt_line(directory), "interrupted", signal="SIGINT", directory=str(directory))
        raise
    except SystemExit:  # by `exit_on_sigterm`
        log.write_line(
            interrupt_line(directory, "by SIGTERM "), "interrupted", signal="SIGTERM", directory=str(directory)
        )
        raise
