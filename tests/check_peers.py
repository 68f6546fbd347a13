"""See that flcore installs beside the newest release of each peer: resolve both together, install nothing."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PEERS = ("flwr", "nvflare")
REPO = Path(__file__).parent.parent


def resolved(*requirements: str) -> dict[str, str]:
    """Return the versions that pip would install for some requirements in an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *requirements], check=True)
        items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in items}


def main() -> int:
    """Print what was found; 1 if a peer had to give way to flcore."""
    failed = False
    for peer in PEERS:
        newest = resolved(peer)[peer]
        together = resolved(peer, str(REPO))
        gave_way = together[peer] != newest
        failed |= gave_way
        shared = ", ".join(f"{name} {together[name]}" for name in ("protobuf", "grpcio", "pyarrow") if name in together)
        print(f"{peer} {newest}: {'only ' + together[peer] + ' fits' if gave_way else 'fits'} ({shared})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
