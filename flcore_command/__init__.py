"""The console script `flcore` (see `command`)."""

from flcore_command.command import main

__all__ = ["main"]
