"""A best model goes to a tracker a part at a time: memory does not grow with its size. See `make test-adapters`."""

import subprocess
import sys
from pathlib import Path

import pytest

MODEL_BYTES = 512 << 20
MOST_BYTES = 64 << 20

PROGRAM = """
import sys, threading
from pathlib import Path
from flcore.tracking import TrackedRun, Trackers, tracking_settings

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

table, directory = eval(sys.argv[1]), Path(sys.argv[2])
(make,) = Trackers.of(tracking_settings({"tracking": table}, directory))._makers.values()
tracker = make()
tracker.begin(TrackedRun("0123456789abcdef", "run", "job", {}, {}))
before, peak, over = anonymous_bytes(), [0], threading.Event()

def watch():
    while not over.wait(0.002):
        peak[0] = max(peak[0], anonymous_bytes())

watching = threading.Thread(target=watch)
watching.start()
tracker.log_best_model([directory / "best.safetensors"])
over.set()
watching.join()
tracker.end("done")
print(max(peak[0], anonymous_bytes()) - before)
"""


@pytest.mark.serial
@pytest.mark.parametrize(
    ("package", "table"), [("mlflow", {"mlflow": "mlruns"}), ("wandb", {"wandb": {"project": "memory"}})]
)
def test_a_best_model_is_not_read_into_memory(package: str, table: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip(package)
    with (tmp_path / "best.safetensors").open("wb") as file:
        file.truncate(MODEL_BYTES)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, repr(table), str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout.splitlines()[-1]) < MOST_BYTES
