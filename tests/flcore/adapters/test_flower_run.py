"""The page docs/flower.md, as printed, in a real Flower: with its own mean and with flcore's."""

import importlib.util
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_bench_peers.flower_deployment import free_ports

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="Flower is not installed (make test-adapters)"
)
BINARIES, KERNELS = Path(sys.executable).parent, str(Path.home() / ".cache" / "flcore")
PAGE = (Path(__file__).parents[3] / "docs/flower.md").read_text()


def block(language: str, text: str) -> str:
    (found,) = [each for each in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text in each]
    return str(found)


def changed(program: str, diff: str) -> str:
    """Apply a diff whose lines are each unique in the program."""
    lines = diff.splitlines()
    for old, new in pairwise(lines):
        if old.startswith("-") and new.startswith("+"):
            assert program.count(old[1:] + "\n") == 1, old
            program = program.replace(old[1:], new[1:])
    return program


def write_app(app: Path, server_app: str, out: str) -> None:
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(block("toml", "[tool.flwr.app.config]").replace("model.npz", out))
    (app / "client_app.py").write_text(block("python", "ClientApp()"))
    (app / "server_app.py").write_text(server_app)


def run(home: Path, server_app: str) -> dict[str, np.ndarray]:
    app = home / "app"
    write_app(app, server_app, str(home / "model.npz"))
    command = [sys.executable, "-m", "flcore_bench_peers.flower_deployment", str(app), str(home), "2", "200"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(home / "model.npz") as model:
        return dict(model)


@pytest.mark.timeout(600)
def test_the_same_app_with_flowers_mean_and_with_ours_comes_to_the_same_model(tmp_path: Path) -> None:
    plain = block("python", "ServerApp()")
    with_ours = changed(plain, block("diff", "StreamingGrid(grid)"))
    assert with_ours.count("flcore.adapters.flower") == 1 and "StreamingGrid(grid)" in with_ours
    theirs, ours = run(tmp_path / "theirs", plain), run(tmp_path / "ours", with_ours)
    assert list(theirs) == list(ours) == ["weights", "bias"]
    for name, values in theirs.items():
        assert values.dtype == ours[name].dtype == np.float32
        assert np.allclose(values, ours[name], rtol=1e-5, atol=1e-6)
    assert np.allclose(ours["weights"], [1, -2, 3], atol=0.1), "it has learnt"


@pytest.mark.timeout(300)
def test_the_commands_as_printed(tmp_path: Path) -> None:
    script = block("sh", "flower-superlink")
    if (
        "--port "
        not in subprocess.run(
            [str(BINARIES / "flower-superlink"), "--help"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    ):
        pytest.skip("the commands are those of a newer Flower")
    for port, free in zip((8000, 8001, 8002), free_ports(3), strict=True):
        script = script.replace(str(port), str(free))
    write_app(
        tmp_path / "app", changed(block("python", "ServerApp()"), block("diff", "StreamingGrid(grid)")), "model.npz"
    )
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings |= {"HOME": str(tmp_path), "FLCORE_CACHE_DIR": settings.get("FLCORE_CACHE_DIR", KERNELS)}
    settings |= {"FLWR_TELEMETRY_ENABLED": "0", "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("w") as log:
        bash = ["bash", "-euc", f"set -m\n{script}"]
        done = subprocess.run(bash, cwd=tmp_path, env=settings, stdout=log, stderr=log, check=False, timeout=250)
    printed = (tmp_path / "log").read_text()
    assert done.returncode == 0 and "'weights': array([" in printed, printed[-4000:]
    assert "flcore combines: mean, exact" in printed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_mixin_as_printed() -> None:
    namespace: dict[str, type] = {}
    exec(block("python", "class FedAdam"), namespace)
    assert (namespace["FedAdam"]().rule, namespace["FedAdam"]().accumulate) == ("median", "float32")


def test_another_rule_as_printed() -> None:
    with_ours = changed(block("python", "ServerApp()"), block("diff", "StreamingGrid(grid)"))
    program, namespace = changed(with_ours, block("diff", 'rule="median"')), dict[str, Any]()
    exec(program, namespace)
    (construction,) = re.findall(r"strategy = (FlcoreStrategy\(.*\))", program)
    assert eval(construction, namespace).rule == "median"
