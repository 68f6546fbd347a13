"""SCAFFOLD with real processes: a client that dies between writing its variate and its upload."""

import signal
from pathlib import Path

import pytest

import flcore
from flcore import load
from tests.flcore.processes import free_port, read_until, started

TOML = """
name = "drift"
clients = ["one", "two"]

[server]
model = "drift.py:initial_model"
workflow = "scaffold"
rule = "unweighted_mean"
rounds = 5
quorum = 2

[client]
executor = "drift.py"

[tasks.train]
returns = "delta"
"""

CODE = """
import os, signal
from pathlib import Path
import numpy as np
from flcore.heterogeneity import Scaffold, with_control_variates

def initial_model(seed):
    return with_control_variates({"w": np.zeros(3, np.float32)}, clients=2)

def train(state, task):
    scaffold, centre = Scaffold(state, task), 1.0 + 3 * task.site.index
    w = scaffold.model["w"].copy()
    noise = np.random.default_rng(task.seed)
    for _ in range(5):
        gradient = (1 + task.site.index) * (w - np.float32(centre)) + noise.normal(0, 0.1, 3).astype(np.float32)
        w -= np.float32(0.1) * scaffold.correct({"w": gradient})["w"]
    update = scaffold.update({"w": w}, steps=5, learning_rate=0.1)
    deadly = Path(__file__).parent / "deadly"
    if task.site.name == "one" and task.round == 3 and deadly.exists():
        deadly.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return update
"""


@pytest.mark.long
def test_a_client_killed_between_writing_and_the_receipt_gives_the_same_bits(tmp_path: Path) -> None:
    job = tmp_path / "drift"
    job.mkdir()
    (job / "job.toml").write_text(TOML)
    (job / "drift.py").write_text(CODE)
    expected = flcore.run(job, workers=0).model.arrays()
    (job / "deadly").touch()
    port = free_port()

    def client(name: str) -> tuple[str, ...]:
        address = ("--server", f"localhost:{port}", "--insecure", "--name", name, "--state", f"state-{name}")
        return ("-m", "flcore", "client", "drift", *address)

    with (
        started("-m", "flcore", "server", "drift", "--insecure", "--port", str(port), cwd=tmp_path) as server,
        started(*client("two"), cwd=tmp_path) as two,
    ):
        read_until(server, "listening on")
        with started(*client("one"), cwd=tmp_path) as one:
            assert one.wait(60) == -signal.SIGKILL
        stored = sorted(path.name for path in (tmp_path / "state-one/job").iterdir())
        assert stored == ["scaffold-00002.safetensors", "scaffold-00003.safetensors"]
        with started(*client("one"), cwd=tmp_path) as again:
            printed = again.communicate(timeout=60)[0]
            assert again.returncode == 0, printed
        assert server.wait(60) == two.wait(20) == 0
    found = load(tmp_path / "runs/drift/model.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
