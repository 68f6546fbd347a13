"""`python -m flcore` is the command `flcore`."""

from flcore.cli.main import main

main()
