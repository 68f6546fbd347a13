"""A Flower deployment on loopback without TLS: a SuperLink, a SuperNode per client, and `flwr run`.

A SuperNode starts a process for every reply of its client, as it does by default.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from socket import socket

from flcore_bench.process import MeasurementFailed

from flcore_bench_peers.process_tree import ProcessTree

BINARIES = Path(sys.executable).parent
START_TIMEOUT_S = 60.0

Start = Callable[..., "subprocess.Popen[bytes]"]


def main() -> None:
    """Run an app (arguments: app, home, clients, timeout in seconds), and print the SuperLink's peak memory."""
    app, home, clients, timeout_s = sys.argv[1:5]
    print(run_app(Path(app), Path(home), int(clients), float(timeout_s)))


def run_app(app: Path, home: Path, clients: int, timeout_s: float) -> int:
    """Run an app to its end.

    Args:
        app: The app's directory.
        home: The home directory of all processes.
        clients: The number of SuperNodes.
        timeout_s: The most seconds that the run may take.

    Returns:
        The SuperLink's peak memory in bytes.

    Raises:
        MeasurementFailed: The run failed. The message has the log.
    """
    with ProcessTree() as tree, (home / "log").open("wb") as log:
        settings = _settings(home)

        def start(program: str, *arguments: str) -> "subprocess.Popen[bytes]":
            command = [str(BINARIES / program), *arguments]
            return subprocess.Popen(command, cwd=home, env=settings, stdout=log, stderr=log)  # noqa: S603 - a peer's

        (_deploy if speaks_http() else _deploy_before_http)(start, app, home, clients)
        run = start("flwr", "run", str(app), "here", "--stream")
        try:
            run.wait(timeout_s)
        except subprocess.TimeoutExpired:
            print(f"Flower's run took more than {timeout_s:.0f} s", file=sys.stderr)
        peak = tree.peak_bytes("flower-superlink")
    if run.returncode != 0:
        raise MeasurementFailed(f"Flower's run failed:\n{(home / 'log').read_text()[-8000:]}")
    return peak


def speaks_http() -> bool:
    """Whether the SuperLink has one port for all APIs, as since about 1.41. Before, each API had its own."""
    command = [str(BINARIES / "flower-superlink"), "--help"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - a peer's
    return "--port " in done.stdout


def _deploy(start: Start, _: Path, home: Path, clients: int) -> None:
    link, *ports = free_ports(1 + clients)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n',
        encoding="utf-8",
    )
    start("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(link))
    wait_for_listener(link)
    for number, port in enumerate(ports):
        node = ("--superlink", f"127.0.0.1:{link}", "--port", str(port))
        start("flower-supernode", "--insecure", *node, "--node-config", _partition(number, clients))


def _deploy_before_http(start: Start, app: Path, home: Path, clients: int) -> None:
    serverappio, fleet, control, *ports = free_ports(3 + clients)
    with (app / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[tool.flwr.federations.here]\naddress = "127.0.0.1:{control}"\ninsecure = true\n')
    addresses = [("serverappio", serverappio), ("fleet", fleet), ("control", control)]
    options = [word for name, port in addresses for word in (f"--{name}-api-address", f"127.0.0.1:{port}")]
    start("flower-superlink", "--insecure", "--flwr-dir", str(home), *options)
    wait_for_listener(fleet)
    for number, port in enumerate(ports):
        node = ("--superlink", f"127.0.0.1:{fleet}", "--clientappio-api-address", f"127.0.0.1:{port}")
        start("flower-supernode", "--insecure", *node, "--node-config", _partition(number, clients))


def _partition(number: int, clients: int) -> str:
    return f"partition-id={number} num-partitions={clients}"


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for_listener(port: int) -> None:
    """Wait until a process listens on a port of loopback."""
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > until:
            raise MeasurementFailed(f"no process listens on port {port} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _settings(home: Path) -> dict[str, str]:
    """Return an environment for Flower's processes."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return settings | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLCORE_CACHE_DIR": settings.get("FLCORE_CACHE_DIR", str(Path.home() / ".cache" / "flcore")),
        "PATH": f"{BINARIES}:{os.environ.get('PATH', os.defpath)}",
    }


if __name__ == "__main__":
    main()
