"""The page docs/flower.md, as printed, in a real Flower: with its own mean and with flcore's."""

import importlib.util
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="Flower is not installed (make test-adapters)"
)
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


def run(home: Path, server_app: str) -> dict[str, np.ndarray]:
    app = home / "app"
    app.mkdir(parents=True)
    settings = block("toml", "[tool.flwr.app.config]").replace("model.npz", str(home / "model.npz"))
    (app / "pyproject.toml").write_text(settings)
    (app / "client_app.py").write_text(block("python", "ClientApp()"))
    (app / "server_app.py").write_text(server_app)
    command = [sys.executable, "-m", "flcore_bench.peers.flower_deployment", str(app), str(home), "2", "200"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(home / "model.npz") as model:
        return dict(model)


@pytest.mark.timeout(600)
def test_the_same_app_with_flowers_mean_and_with_ours_comes_to_the_same_model(tmp_path: Path) -> None:
    plain = block("python", "ServerApp()")
    with_ours = changed(plain, block("diff", "StreamingGrid"))
    assert with_ours.count("flcore.adapters.flower") == 1 and "StreamingGrid(grid)" in with_ours
    theirs, ours = run(tmp_path / "theirs", plain), run(tmp_path / "ours", with_ours)
    assert list(theirs) == list(ours) == ["weights", "bias"]
    for name, values in theirs.items():
        assert values.dtype == ours[name].dtype == np.float32
        assert np.allclose(values, ours[name], rtol=1e-5, atol=1e-6)
    assert np.allclose(ours["weights"], [1, -2, 3], atol=0.1), "it has learnt"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_mixin_as_printed() -> None:
    namespace: dict[str, type] = {}
    exec(block("python", "class FedAdam"), namespace)
    assert namespace["FedAdam"]().accumulate == "float32"
