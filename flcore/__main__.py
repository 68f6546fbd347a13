"""`python -m flcore` is the command `flcore`."""

import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
    del sys.path[0]  # like the command `flcore`, never import modules from the working directory

from flcore.cli.main import main

main()
