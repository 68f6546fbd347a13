"""Rounds of peers, without the peers: what is read from their logs, what becomes of their processes, the rows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flcore_bench import MeasurementFailed, Row, Sizes, peers
from flcore_bench import run as bench_run
from flcore_bench_peers.drop_in import DropIn, drop_in_rows
from flcore_bench_peers.round_nvflare import aggregating_of, seconds_of

LOG = """2026-11-25 14:00:00,000 - FedAvg - INFO - [wf=controller] -
-----
   Round 0 started.
-----
2026-11-25 14:00:00,001 - FedAvg - INFO - [wf=controller] - Sampled clients
2026-11-25 14:00:01,000 - FedAvg - INFO - [wf=controller] - Aggregated 1/2 results
2026-11-25 14:00:02,000 - FedAvg - INFO - [wf=controller] - Aggregated 2/2 results
2026-11-25 14:00:02,250 - FedAvg - INFO - [wf=controller] - Start persist model on server.
2026-11-25 14:00:05,000 - FedAvg - INFO - [wf=controller] - End persist model on server.
2026-11-25 14:00:05,500 - FedAvg - INFO - [wf=controller] -
   Round 1 started.
2026-11-25 14:00:06,000 - FedAvg - INFO - [wf=controller] - Aggregated 1/2 results
2026-11-25 14:00:06,000 - FedAvg - INFO - [wf=controller] - Aggregated 2/2 results
2026-11-25 14:00:06,500 - FedAvg - INFO - [wf=controller] - Start persist model on server.
"""

TREE = """
import subprocess, sys, time
from flcore_bench_peers.process_tree import ProcessTree
child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'," \
        " 'grandchild'], start_new_session=True); print(p.pid, flush=True)"
with ProcessTree() as tree:
    subprocess.run([sys.executable, "-c", child], check=True)
    until = time.monotonic() + 20
    while not tree.peak_bytes("grandchild") and time.monotonic() < until:
        time.sleep(0.05)
print(tree.peak_bytes("grandchild"))
"""


def test_rounds_of_nvflare_are_read_from_its_log_without_saving_the_model() -> None:
    assert seconds_of(LOG, 2) == [2.25, 1.0]


def test_a_round_without_a_client_is_no_measurement() -> None:
    with pytest.raises(MeasurementFailed, match="2 models of 3"):
        seconds_of(LOG, 3)


@pytest.mark.serial
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_descendant_outlives_the_context_whatever_session_it_is_in() -> None:
    done = subprocess.run([sys.executable, "-c", TREE], stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    grandchild, peak = map(int, done.stdout.split())
    assert peak > 1_000_000
    with pytest.raises(ProcessLookupError):
        os.kill(grandchild, 0)


def test_rounds_of_peers_stand_beside_ours_and_absent_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_in_process(module: str, *arguments: str, **_: Any) -> Any:
        assert arguments == ("64000000", "4", "3", "own")
        if module.endswith("flower"):
            return {"absent": True}
        return json.loads('{"absent": false, "version": "2.9.0", "seconds": [6, 8], "peaks": {"server": 9e9}}')

    monkeypatch.setattr(peers, "run_in_process", run_in_process)
    monkeypatch.setattr(peers, "round_row", lambda scale: Row("round", [2.0], 4))
    monkeypatch.setattr(peers, "rows_of", lambda cases, scale, threads: [Row("streaming", [1.0], 4)])
    monkeypatch.chdir(tmp_path)
    report = bench_run("round-peers", "small")
    assert report.absent == ["flower"]
    assert [row.against for row in report.rows] == [{"NVFLARE": 3.5}, {"NVFLARE": 7.0}, {}]
    assert report.rows[-1].what == "round, NVFLARE 2.9.0, 64 MB x 4 clients"
    assert report.rows[-1].note == "server's peak 9,000 MB"
    assert "absent" in capsys.readouterr().out


def test_what_a_mean_took_is_read_from_nvflares_log() -> None:
    lines = "x - INFO - seconds in aggregation: 0.250000\ny\nx - INFO - seconds in aggregation: 1.5\n"
    assert aggregating_of(lines) == [0.25, 1.5]


def test_a_peer_stands_beside_itself_with_our_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run_in_process(module: str, *arguments: str, **_: Any) -> Any:
        asked.append((module.rpartition(".")[2], *arguments))
        if module.endswith("drop_in"):
            return [Row("aggregation", [1.0], 4).to_json()]
        seconds = {"own": 8.0, "float32": 4.0, "exact": 5.0}[arguments[3]]
        return {"version": "1", "seconds": [seconds], "aggregation": [0.5, 0.7], "peaks": {"server": 2e9}}

    monkeypatch.setattr(peers, "run_in_process", run_in_process)
    rows = peers.drop_in_rows("flower", Path(sys.executable), "small", 2, {})
    assert asked == [
        ("drop_in", "flower", "small"),
        *[("round_flower", "64000000", "4", "3", way) for way in ("own", "float32", "exact")],
    ]
    assert [row.against for row in rows] == [{}, {}, {"its own": 2.0}, {"its own": 1.6}]
    assert rows[1].what == "round, Flower 1, 64 MB x 4 clients: its own mean"
    assert rows[1].note == "0.60 s in aggregation; server's peak 2,000 MB"


def test_a_drop_in_is_measured_in_turn_and_must_agree() -> None:
    models = [{"weight": np.full(512, value, np.float32)} for value in (1.0, 2.0)]
    mean = np.full(512, 1.75, np.float32)
    setup = Sizes("small", 2, 2, 512, 20, (), (), 0)
    one = DropIn("peer", lambda: mean, {"flcore": lambda: mean}, lambda result: np.asarray(result), {"flcore": 0.001})
    rows = drop_in_rows(one, models, [1.0, 3.0], setup)
    assert [row.what.rpartition(": ")[2] for row in rows] == ["its own mean", "flcore"]
    assert rows[1].goals[0].is_met and rows[1].against["its own"] > 0
    wrong = DropIn("peer", lambda: mean, {"flcore": lambda: mean + 1}, lambda result: np.asarray(result))
    with pytest.raises(RuntimeError, match=r"peer, flcore: .* expected"):
        drop_in_rows(wrong, models, [1.0, 3.0], setup)
