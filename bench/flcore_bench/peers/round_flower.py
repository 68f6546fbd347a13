"""Whole rounds of Flower: a SuperLink, a SuperNode for each client and `flwr run`, all over loopback without TLS.

What runs in them is an app of `flower_server`, which measures, and `flower_client`. A SuperNode starts a process for
every answer of its client, as it does by default.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from flcore_bench.child import MeasurementFailed
from flcore_bench.peers.offspring import Offspring

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
result = "{result}"
"""

BINARIES = Path(sys.executable).parent
START_TIMEOUT_S = 60.0
TIMEOUT_S = 900.0


def main() -> None:
    """Run rounds of a model of so many bytes with so many clients, and print the figures."""
    if find_spec("flwr") is None:
        print(json.dumps({"absent": True}))
        return
    size, clients, rounds = map(int, sys.argv[1:4])
    print(json.dumps({"absent": False, "version": version("flwr")} | measured(size, clients, rounds)))


def measured(size: int, clients: int, rounds: int) -> dict[str, object]:
    """Return the seconds of all rounds but the first, and the peak memory of the server's processes."""
    with tempfile.TemporaryDirectory(prefix="flcore-bench-", ignore_cleanup_errors=True) as name, Offspring() as family:
        home = Path(name)
        link, *ports = free_ports(1 + clients)
        settings, result = _settings(home, link), home / "result.json"
        app = _app(home, size=size, clients=clients, rounds=rounds, timeout=TIMEOUT_S, result=result)
        with (home / "log").open("wb") as log:

            def start(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
                command = [str(BINARIES / program), *arguments]
                return subprocess.Popen(command, cwd=home, env=settings, stdout=log, stderr=log)  # noqa: S603 - a peer's

            start("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(link))
            await_listener(link)
            for number, port in enumerate(ports):
                partition = f"partition-id={number} num-partitions={clients}"
                node = ("--superlink", f"127.0.0.1:{link}", "--port", str(port), "--node-config", partition)
                start("flower-supernode", "--insecure", *node)
            run = start("flwr", "run", str(app), "bench", "--stream")
            try:
                run.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                print(f"Flower's run took more than {TIMEOUT_S:.0f} s", file=sys.stderr)
        superlink = family.peak_bytes("flower-superlink")
        if not result.is_file():
            raise MeasurementFailed(f"Flower's run came to no result:\n{(home / 'log').read_text()[-8000:]}")
        found = json.loads(result.read_text(encoding="utf-8"))
    peaks = {"ServerApp": found["peak_bytes"], "SuperLink": superlink}
    return {"seconds": found["seconds"][1:], "peaks": peaks}


def _app(home: Path, **config: object) -> Path:
    """Make the app's folder."""
    folder = home / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(APP.format(**config), encoding="utf-8")
    for name in ("flower_server.py", "flower_client.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    return folder


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def await_listener(port: int) -> None:
    """Wait until somebody listens on a port of loopback."""
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise MeasurementFailed(f"nobody listens on port {port} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _settings(home: Path, link: int) -> dict[str, str]:
    """Return an environment for Flower's processes, whose home is `home`; there it says where the SuperLink is."""
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{link}"\ninsecure = true\n',
        encoding="utf-8",
    )
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return settings | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BINARIES}:{os.environ.get('PATH', os.defpath)}",
    }


if __name__ == "__main__":
    main()
