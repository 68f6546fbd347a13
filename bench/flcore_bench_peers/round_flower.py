"""Whole rounds of Flower, with its own mean or with flcore's.

The app consists of `flower_server`, which measures, and `flower_client`. `flower_deployment` runs it.
"""

import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flcore_bench_peers.flower_deployment import run_app

APP = """
[project]
name = "echo"
version = "1.0.0"
description = "Rounds that return what was sent."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "flcore"

[tool.flwr.app.components]
serverapp = "flower_server:app"
clientapp = "flower_client:app"

[tool.flwr.app.config]
size = {size}
clients = {clients}
rounds = {rounds}
timeout = {timeout}
aggregation = "{aggregation}"
result = "{result}"
"""

TIMEOUT_S = 900.0


def main() -> None:
    """Run rounds (arguments: bytes, clients, rounds, aggregation), and print the figures as JSON."""
    if find_spec("flwr") is None:
        print(json.dumps({"absent": True}))
        return
    size, clients, rounds = map(int, sys.argv[1:4])
    print(json.dumps({"absent": False, "version": version("flwr")} | run_rounds(size, clients, rounds, sys.argv[4])))


def run_rounds(size: int, clients: int, rounds: int, aggregation: str) -> dict[str, Any]:
    """Return each round's seconds, those in aggregation, and the server processes' peaks. The first round warms up.

    `aggregation` is "own", or flcore's accumulator: "float32" or "exact".
    """
    with tempfile.TemporaryDirectory(prefix="flcore-bench-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        app, result = home / "app", home / "result.json"
        app.mkdir()
        settings = {"size": size, "clients": clients, "rounds": rounds, "timeout": TIMEOUT_S}
        text = APP.format(**settings, aggregation=aggregation, result=result)
        (app / "pyproject.toml").write_text(text, encoding="utf-8")
        for file in ("flower_server.py", "flower_client.py"):
            shutil.copy(Path(__file__).with_name(file), app)
        superlink = run_app(app, home, clients, TIMEOUT_S)
        found = json.loads(result.read_text(encoding="utf-8"))
    peaks = {"ServerApp": found["peak_bytes"], "SuperLink": superlink}
    return {"seconds": found["seconds"][1:], "aggregation": found["aggregation"][1:], "peaks": peaks}


if __name__ == "__main__":
    main()
