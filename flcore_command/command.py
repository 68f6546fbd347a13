"""The console script `flcore`. Ctrl-C while Python imports the command, for half a second, ends it without a traceback.

It is no module of `flcore`, whose import is most of this time.
"""

import signal


def main() -> None:
    """Import the command, and run it."""
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:  # not where it is ignored, as in a background job of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flcore.cli.main import load
    from flcore.cli.main import main as run_command

    app = load()
    signal.signal(signal.SIGINT, interrupts)
    run_command(app)
