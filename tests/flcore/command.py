"""The command line in tests: in a process of its own, or, where only the words matter, in this one."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

from flcore.cli.main import main

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1"}


def flcore(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Run `python -m flcore ARGUMENTS`; return all that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "flcore", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, **PLAIN},
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def said(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Run the same within this process, half a second sooner. An error that would be a traceback is raised."""
    printed = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(mock.patch.dict(os.environ, PLAIN))
        stack.enter_context(mock.patch("sys.argv", ["flcore", *arguments]))
        stack.enter_context(mock.patch("sys.unraisablehook", sys.unraisablehook))  # the command may replace both
        stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            main()
            ended: object = 0
        except SystemExit as end:
            ended = end.code
    assert ended == code, printed.getvalue()
    return printed.getvalue()
