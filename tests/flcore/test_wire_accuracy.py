"""Digits trained over narrow wires: each form reaches the accuracy of float32 within a point (mean of 3 seeds).

`python -m tests.flcore.test_wire_accuracy` prints the table of docs/memory.md.
"""

import statistics
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import flcore
from flcore import Job
from flcore.job.parsing import parse_contract

SEEDS = (1, 2, 3)
DELTA = """
import flcore
from flcore.jobs.digits import digits

class Hospital(digits.Hospital):
    def train(self, model, task):
        update = super().train(model, task)
        difference = {name: array - model[name] for name, array in update.arrays.items()}
        return flcore.Update(difference, weight=update.weight, metrics=update.metrics)
"""
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16 both ways": {"download": "float16", "upload": "float16"},
    "bfloat16 both ways": {"download": "bfloat16", "upload": "bfloat16"},
    "bfloat16 down, int8[256] up": {"download": "bfloat16", "upload": "int8[256]"},
    "bfloat16 down, int8[32] up": {"download": "bfloat16", "upload": "int8[32]"},
}


def job_of(form: dict[str, Any], seed: int, directory: Path) -> Job:
    """Return the digits job in a form; where differences travel, its clients return some."""
    content = Job.load("digits", seed=seed).contract.model_dump(mode="json") | {"wire": form, "baselines": None}
    content["server"]["model"] = "flcore.jobs.digits.digits:initial_model"
    content["client"]["executor"] = "flcore.jobs.digits.digits:Hospital"
    if form.get("upload", "").startswith("int8"):
        (directory / "delta.py").write_text(DELTA)
        content["tasks"]["train"]["returns"] = "delta"
        content["client"]["executor"] = "delta.py:Hospital"
    return Job(parse_contract(content, "the test's contract"), directory)


@cache
def results(name: str) -> tuple[float, float]:
    """Return the mean accuracy of the last round, and its bytes, of all clients both ways."""
    accuracies, traffic = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as directory:
            history, _ = flcore.run(job_of(FORMS[name], seed, Path(directory)), workers=0)
        accuracies.append(history[-1].validate["accuracy"])
        traffic.append(history[-1].bytes_sent + history[-1].bytes_received)
    return statistics.mean(accuracies), statistics.mean(traffic)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FORMS if name != "float32"])
def test_compressed_wires_reach_the_accuracy_of_float32(name: str) -> None:
    accuracy, traffic = results(name)
    reference, plain = results("float32")
    assert accuracy > reference - 0.01
    assert traffic < plain * (0.52 if "int8" not in name else 0.45)


if __name__ == "__main__":
    print("| on the wire | MB a round, six clients both ways | accuracy, mean of 3 seeds |\n|---|---:|---:|")
    for name in FORMS:
        accuracy, traffic = results(name)
        print(f"| {name} | {traffic / 1e6:.2f} | {accuracy:.4f} |")
