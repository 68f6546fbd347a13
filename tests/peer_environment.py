"""An environment with a peer and flcore: `python tests/peer_environment.py NAME REQUIREMENT...` makes `.peers/NAME`.

Where the directory `FLCORE_PEERS_CACHE` (`~/.cache/flcore-peers`) exists, environments are kept in it, under a hash
of their requirements, and `.peers/NAME` is a link. So a new clone installs nothing but itself.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("FLCORE_PEERS_CACHE") or Path.home() / ".cache/flcore-peers")


def key_of(requirements: list[str]) -> str:
    """Return the hash of all that is installed but flcore itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [sys.version, *requirements, *project["dependencies"], *project["optional-dependencies"]["test"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def place_of(name: str, key: str) -> Path:
    """Return the directory of the environment; in the cache, those of the same name with other requirements go."""
    here = ROOT / ".peers" / name
    here.parent.mkdir(exist_ok=True)
    if not CACHE.is_dir():
        return here
    place = CACHE / f"{name}-{key}"
    for other in CACHE.glob(f"{name}-{'?' * len(key)}"):
        if other != place:
            shutil.rmtree(other)
    if here.is_symlink():
        here.unlink()
    elif here.exists():
        shutil.rmtree(here)
    here.symlink_to(place)
    return place


def main() -> None:
    """Make the environment, unless it is there, and install this clone's flcore in it, unless that is there."""
    name, *requirements = sys.argv[1:]
    key = key_of(requirements)
    place = place_of(name, key)
    complete, source = place / ".complete", place / ".flcore"
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet"]
    if not complete.exists() or complete.read_text() != key:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([*pip, *requirements], check=True)
        subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)
        source.write_text(str(ROOT))
        complete.write_text(key)
    elif source.read_text() != str(ROOT):
        subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
        source.write_text(str(ROOT))


if __name__ == "__main__":
    main()
