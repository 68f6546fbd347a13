"""Processes that run a part of flcore for this one: how they are started, and how they end with their parent.

A child gets its setup as one line of JSON on its standard input, which then stays open until the parent ends. Its
standard output carries messages to the parent, one line of JSON each. All that is printed goes to standard error.
"""

import fcntl
import json
import os
import select
import signal
import sys
import threading
from typing import Any

# The arguments are the parent's `sys.path`; what a child finds by itself comes after it.
CHILD_PROGRAM = (
    "import sys; sys.path[:] = dict.fromkeys(sys.argv[1:] + sys.path); from {} import main; sys.exit(main())"
)


def python_command(module: str, python: str | None = None) -> list[str]:
    """Return the command of a child that runs the function `main` of a module.

    Args:
        module: The module.
        python: Another environment's Python, which finds modules by itself. Default: None, this one, with its
            `sys.path`.
    """
    # -P: leaves out the working directory, whose files may shadow modules.
    command = [python or sys.executable, "-P", "-c", CHILD_PROGRAM.format(module)]
    return command if python else command + importable_directories()


def importable_directories() -> list[str]:
    """Return the directories of this process's `sys.path` for its workers, without "", the working directory.

    Directories that were added by name are included, even if one is the working directory.
    """
    entries = [entry for entry in sys.path if os.path.normpath(entry) != "."]
    return list(dict.fromkeys(os.path.abspath(entry) for entry in entries))  # noqa: PTH100 - they are str


class MessagesToParent:
    """A child's standard output, reserved for messages. Prints are redirected to standard error."""

    def __init__(self) -> None:
        self._descriptor = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def send(self, message: list[Any]) -> None:
        """Send a message. Waits while the pipe is full. May be called from any thread."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def send_if_room(self, message: list[Any]) -> None:
        """Send a short message, or drop it if the parent does not read."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if poll.poll(0):
            self.send(message)


def end_with_parent() -> None:
    """End this process when its standard input closes, which happens when the parent ends, however it ends.

    If the process leads a group, the group ends with it. On Linux the kernel does this by a signal: a thread cannot end
    a process whose code holds the interpreter's lock.
    """
    leads_group = os.getpgrp() == os.getpid()
    if leads_group and sys.platform == "linux":
        descriptor = sys.stdin.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | fcntl.FASYNC)

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        if leads_group:
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
